"""Owns how the page looks and the few lines of script that sort its tables; the page is whole without the script."""

STYLE = """
:root{color-scheme:light dark;
--font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif;
--ink:#1c2128;--muted:#59636e;--grid:#dfe3e8;--paper:#fffffe;--soft:#f5f7f9;--blue:#2f6fde;--red:#d6453d;--teal:#138d84;
--amber:#c98a08;--violet:#8250df;--grey:#9aa4b0;--tint:#dbe7fb;--warm:#fbe0de}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6eaef;--muted:#9da8b4;--grid:#2c343d;--paper:#12161b;
--soft:#1a2027;--blue:#5f97f6;--red:#f0756d;--teal:#36b9ae;--amber:#e0a93b;--violet:#ab8df2;--grey:#6d7883;
--tint:#1d3252;--warm:#4b2523}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 var(--font);font-variant-numeric:tabular-nums}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 28px}
header{padding-top:40px}
h1{font-size:29px;line-height:1.2;letter-spacing:-.015em;margin:0 0 4px;overflow-wrap:anywhere}
.subtitle{color:var(--muted);margin:0;overflow-wrap:anywhere}
h2{font-size:20px;letter-spacing:-.01em;margin:0 0 4px;scroll-margin-top:56px}
h3{font-size:15px;margin:28px 0 8px}
section{margin-top:52px}
.guide{color:var(--muted);max-width:84ch;margin:0 0 18px}
.guide b,.verdict b{color:var(--ink);font-weight:600}
nav{position:sticky;top:0;z-index:2;background:var(--paper);border-bottom:1px solid var(--grid);margin-top:26px}
nav div{max-width:1180px;margin:0 auto;padding:0 28px;display:flex;gap:22px;overflow-x:auto}
nav a{color:var(--muted);text-decoration:none;padding:10px 0;white-space:nowrap;font-size:14px}
nav a:hover,nav a:focus{color:var(--ink)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:14px;margin:26px 0 20px}
.card{border:1px solid var(--grid);border-top:3px solid var(--grey);border-radius:8px;padding:12px 16px 13px}
.card.accuracy{border-top-color:var(--blue)}.card.calibration{border-top-color:var(--red)}
.card .name{color:var(--muted);font-size:13px}
.card .number{font-size:28px;font-weight:650;line-height:1.25;letter-spacing:-.02em}
.card .note{color:var(--muted);font-size:12.5px;line-height:1.4}
.verdict{font-size:17px;max-width:78ch;margin:0 0 14px}
.verdict b.over{color:var(--red)}.verdict b.under{color:var(--teal)}
.convention{border-left:3px solid var(--grid);padding:2px 0 2px 12px;color:var(--muted);font-size:13.5px;margin:0;
overflow-wrap:anywhere}
figure{margin:0}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:36px;align-items:start}
.pair figure svg{max-width:540px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{font-weight:600;text-align:right;color:var(--muted);font-size:12.5px;padding:6px 10px;
border-bottom:1px solid var(--grey);vertical-align:bottom;white-space:nowrap}
td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:2px}
td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:9em}
tbody tr:hover{background:var(--soft)}
tfoot td{border-bottom:0;border-top:1px solid var(--grey);font-weight:600}
.scores td:last-child,.scores th:last-child{text-align:left;white-space:normal;color:var(--muted)}
.scores td:nth-last-child(2){color:var(--muted)}
.scores td.group{font-weight:600;padding-top:18px}
.bar{min-width:130px;background:linear-gradient(var(--tint),var(--tint)) no-repeat
10px center/calc((100% - 10px)*var(--length)) 66%}
.bar.warm{background-image:linear-gradient(var(--warm),var(--warm))}
.over{color:var(--red)}.under{color:var(--teal)}.none{color:var(--muted)}
.sortable.live th{cursor:pointer;user-select:none}
.sortable.live th::after{content:"";display:inline-block;width:.9em;text-align:center}
.sortable th[aria-sort=ascending]::after{content:"\\2191"}
.sortable th[aria-sort=descending]::after{content:"\\2193"}
.chip{display:inline-block;width:.85em;height:.85em;border-radius:3px;margin-right:.5em;vertical-align:-.06em;
box-shadow:inset 0 0 0 1px rgb(128 128 128/.45)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:0 0 8px}
.ramp{display:inline-flex;align-items:center;gap:8px}
.ramp i{width:110px;height:11px;border-radius:3px;box-shadow:inset 0 0 0 1px rgb(128 128 128/.35)}
.example{margin:0 0 26px;break-inside:avoid}
.example h3{margin:18px 0 6px;font-weight:600;overflow-wrap:anywhere}
.example h3 span{color:var(--muted);font-weight:400;margin-left:10px;white-space:nowrap}
.role{display:inline-block;border-radius:4px;padding:0 8px;margin-right:10px;font-size:12.5px;
font-style:normal;background:var(--tint)}
.role.worst{background:var(--warm)}.role.median{background:var(--grid)}
.tiles{display:grid;grid-template-columns:repeat(6,minmax(0,1fr));gap:8px}
.tiles img{display:block;width:100%;height:auto;border-radius:4px;cursor:zoom-in}
.tiles figcaption{color:var(--muted);font-size:12.5px;padding-top:3px}
.tiles figure:focus{outline:0}
.tiles figure:focus img{position:fixed;inset:0;margin:auto;width:min(96vw,1100px);max-height:96vh;object-fit:contain;
z-index:9;box-shadow:0 0 0 200vmax rgb(0 0 0/.78);cursor:default;image-rendering:auto}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 22px;margin:0;font-size:14px}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);border:1px solid var(--grid);border-radius:6px;padding:10px 14px;font-size:13px;
white-space:pre-wrap;overflow-wrap:anywhere}
details{margin-top:18px}summary{cursor:pointer;color:var(--blue)}
details .scroll{max-height:520px;overflow-y:auto;margin-top:10px}
footer{color:var(--muted);font-size:13px;margin-top:60px;padding-bottom:48px}
@media screen and (max-width:760px){.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:8px}main,header,footer,nav div{padding-left:16px;padding-right:16px}}
@media print{@page{size:A4;margin:14mm}body{font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
nav,details{display:none}header,main,footer{padding:0;max-width:none}section{margin-top:26px}
h2,h3,.guide,.legend{break-after:avoid}figure,tr,.card,.guide{break-inside:avoid}
.pair{grid-template-columns:1fr 1fr;gap:16px}
.cards{grid-template-columns:repeat(5,1fr);gap:8px}.card{padding:8px 10px}.card .number{font-size:20px}
table{font-size:8.5pt}th{font-size:8pt}th,td{padding:3px 6px}.scroll{overflow:visible}tfoot{display:table-row-group}
.bar{min-width:80px}td:first-child{min-width:6em}.verdict{font-size:12pt}}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.classList.add("live");
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const rising = head.getAttribute("aria-sort") === "descending" ||
        (column === 0 && head.getAttribute("aria-sort") !== "ascending");
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value;
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        const step = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return rising ? step : -step;
      };
      body.append(...[...body.rows].sort(order));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}
"""
