"""Owns the built-in datasets: their folders, ids, names and colours as published."""

from dataclasses import replace

from calseg_cli.data.layout import Layout

# Name, official label id, colour; in the order of the public evaluation's 19 train ids (Cordts et al. 2016).
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CITYSCAPES19 = tuple(name for name, _, _ in _CITYSCAPES)
# The two class lists of results that start from SYNTHIA: without what it lacks, and without wall, fence and pole too.
SYNTHIA16 = tuple(name for name in CITYSCAPES19 if name not in ("terrain", "truck", "train"))
SYNTHIA13 = tuple(name for name in SYNTHIA16 if name not in ("wall", "fence", "pole"))
_COLORS = {name: color for name, _, color in _CITYSCAPES}
_LABEL_IDS = {raw: index for index, (_, raw, _) in enumerate(_CITYSCAPES)}
_TRAIN_IDS = {index: index for index in range(len(_CITYSCAPES))}

FOLDERS = Layout(name="folders", images="{split}/images/{path}.*", labels="{split}/labels/{path}.png")

CITYSCAPES = Layout(
    name="cityscapes",
    images="leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png",
    labels="gtFine/{split}/{city}/{frame}_gtFine_labelIds.png",
    class_names=CITYSCAPES19,
    ids=_LABEL_IDS,
    # Ids 0 to 33 are all that is published; the licence plate's -1 cannot stand in an 8-bit file, where it is 255.
    ignore_ids=frozenset(range(34)) - frozenset(_LABEL_IDS),
    palette=tuple(_COLORS[name] for name in CITYSCAPES19),
    class_ids=tuple(raw for _, raw, _ in _CITYSCAPES),
)

# 24966 frames of 1052x1914 or 1046x1914, labels as palette images whose indices are Cityscapes' label ids and 34, the
# licence plate (Richter et al. 2016).
GTA5 = replace(
    CITYSCAPES,
    name="gta5",
    images="images/{frame}.png",
    labels="labels/{frame}.png",
    ignore_ids=frozenset(range(35)) - frozenset(_LABEL_IDS),
    holdout=50,
)

# RAND_CITYSCAPES (Ros et al. 2016): 16 bits a channel, the class in the first and the instance in the second.
_SYNTHIA_IDS = {
    "sky": 1, "building": 2, "road": 3, "sidewalk": 4, "fence": 5, "vegetation": 6, "pole": 7, "car": 8,
    "traffic sign": 9, "person": 10, "bicycle": 11, "motorcycle": 12, "traffic light": 15, "terrain": 16, "rider": 17,
    "truck": 18, "bus": 19, "train": 20, "wall": 21,
}  # fmt: skip


def _synthia(name: str, class_names: tuple[str, ...]) -> Layout:
    """Void, parking, road work and lane marking (0, 13, 14, 22) are left out, as in all published results."""
    ids = {_SYNTHIA_IDS[label]: index for index, label in enumerate(class_names)}
    return Layout(
        name=name,
        images="RGB/{frame}.png",
        labels="GT/LABELS/{frame}.png",
        class_names=class_names,
        ids=ids,
        ignore_ids=frozenset(range(23)) - frozenset(ids),
        encoding="first-channel-16bit",
        palette=tuple(_COLORS[label] for label in class_names),
        holdout=50,
        class_ids=tuple(_SYNTHIA_IDS[label] for label in class_names),
    )


# Sakaridis et al. 2021. Reference frames lie in train_ref and so on, which are no splits of this layout.
ACDC = replace(
    CITYSCAPES,
    name="acdc",
    images="rgb_anon/{condition}/{split}/{sequence}/{frame}_rgb_anon.png",
    labels="gt/{condition}/{split}/{sequence}/{frame}_gt_labelTrainIds.png",
    ids=_TRAIN_IDS,
    ignore_ids=frozenset({255}),
    class_ids=tuple(range(len(_CITYSCAPES))),
)


def _acdc(condition: str) -> Layout:
    """One of the four conditions; ids lose its name, the rest stays."""
    assert ACDC.labels is not None
    return replace(
        ACDC,
        name=f"acdc-{condition}",
        images=ACDC.images.replace("{condition}", condition),
        labels=ACDC.labels.replace("{condition}", condition),
    )


# Yu et al. 2020: 10k images; the public masks and images differ by ten files, and test has no masks.
BDD100K = replace(
    ACDC,
    name="bdd100k",
    images="images/10k/{split}/{frame}.jpg",
    labels="labels/sem_seg/masks/{split}/{frame}.png",
)

# Brostow et al. 2008: what each of the 11 classes is made of, name and colour of the 32 original ones.
_CAMVID = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0), "Archway": (192, 0, 128), "Bridge": (0, 128, 64), "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128), "SUVPickupTruck": (64, 128, 192), "Truck_Bus": (192, 128, 192), "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0), "Child": (192, 128, 64), "CartLuggagePram": (64, 0, 192), "Animal": (64, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}  # fmt: skip
_CAMVID_VOID = 0x000000

# The 367/101/233 frames of 480x360 with class indices that most results use; 11 is void.
CAMVID = Layout(
    name="camvid",
    images="{split}/{frame}.png",
    labels="{split}annot/{frame}.png",
    class_names=tuple(_CAMVID),
    ids={index: index for index in range(len(_CAMVID))},
    ignore_ids=frozenset({11}),
    palette=tuple(next(iter(parts.values())) for parts in _CAMVID.values()),
    class_ids=tuple(range(len(_CAMVID))),
)

# The original 701 frames of 960x720. Frames are neighbours in time: for an honest validation name whole drives in
# `lists`; the holdout only makes training possible without one.
CAMVID_COLOR = replace(
    CAMVID,
    name="camvid-color",
    images="701_StillsRaw_full/{frame}.png",
    labels="LabeledApproved_full/{frame}_L.png",
    ids={},
    colors={color: index for index, parts in enumerate(_CAMVID.values()) for color in parts.values()},
    ignore_ids=frozenset({_CAMVID_VOID}),
    encoding="color",
    holdout=10,
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FOLDERS,
        CAMVID,
        CAMVID_COLOR,
        CITYSCAPES,
        GTA5,
        _synthia("synthia", SYNTHIA16),
        _synthia("synthia13", SYNTHIA13),
        ACDC,
        *(_acdc(condition) for condition in ("fog", "night", "rain", "snow")),
        BDD100K,
    )
}
