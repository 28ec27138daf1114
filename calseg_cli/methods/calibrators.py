"""Owns the table of calibrators: what `calseg calibrate --method` can name, and which class reads its artifact."""

from calseg_cli.methods.balanced_prediction import BalancedPrediction
from calseg_cli.methods.calibrator import Calibrator
from calseg_cli.methods.dacal_calibrator import DACalCalibrator
from calseg_cli.methods.local_temperature import LocalTemperature
from calseg_cli.methods.logit_adjustment import LogitAdjustment
from calseg_cli.methods.metacal import MetaCal
from calseg_cli.methods.pseudocal import PseudoCal
from calseg_cli.methods.selective_scaling import SelectiveScaling
from calseg_cli.methods.temperature import Temperature
from calseg_cli.methods.vector_scaling import VectorScaling

CALIBRATORS: dict[str, type[Calibrator]] = {
    kind.method: kind
    for kind in (
        Temperature,
        VectorScaling,
        LocalTemperature,
        SelectiveScaling,
        PseudoCal,
        MetaCal,
        DACalCalibrator,
        BalancedPrediction,
        LogitAdjustment,
    )
}

LABEL_FREE = frozenset({PseudoCal.method})
"""Methods that are fitted on images of the target alone, mixed; of the others, some can be fitted without labels."""

BALANCING = frozenset({BalancedPrediction.method, LogitAdjustment.method})
"""Methods that even out how classes fare, with a strength tau."""

FOR_TARGET = LABEL_FREE | BALANCING | {DACalCalibrator.method}
"""Methods that look at images of the target and open no label of it, whatever they need of the source."""
