"""The report's style sheet. Colours are variables with a light and a dark value; both keep a contrast of 4.5 and more."""

CSS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2027;--soft:#5b6572;--edge:#dde1e7;--accent:#0b62a8;
--good:#00664a;--good-bg:#dff3ea;--bad:#a33a00;--bad-bg:#fdeadd;--idle:#4c5663;--idle-bg:#e9ecf0;--bar:#cfe3f5;
--s0:#0068a8;--s1:#b84c00;--s2:#00775a;--s3:#a2458a;--s4:#7a6a00;--s5:#4a5568}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--card:#1a1f26;--ink:#e6eaf0;--soft:#9da8b6;--edge:#2d343e;--accent:#7cc0f5;
--good:#6fdcb4;--good-bg:#11382c;--bad:#ffb183;--bad-bg:#43240f;--idle:#b4bdc9;--idle-bg:#2a313b;--bar:#1f4666;
--s0:#6cbcf5;--s1:#ff9d5c;--s2:#4fd6a5;--s3:#ee9bd3;--s4:#e0cc4a;--s5:#aab4c2}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
header,main,footer{max-width:1240px;margin:0 auto;padding:0 24px}
header{padding-top:28px}
h1{font-size:28px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:19px;margin:0 0 14px;letter-spacing:-.005em}
h3{font-size:15px;margin:18px 0 6px}
p{margin:0}
small,.soft{color:var(--soft);font-size:12.5px}
a{color:var(--accent)}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px;border-radius:4px}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:16px 0 0;padding-bottom:12px;border-bottom:1px solid var(--edge)}
nav a{text-decoration:none;font-weight:550}nav a:hover{text-decoration:underline}
section{margin:30px 0 40px;scroll-margin-top:12px}
footer{padding-bottom:32px;color:var(--soft);font-size:13px}
.chips{display:flex;flex-wrap:wrap;gap:5px 12px;align-items:center;color:var(--soft);font-size:13.5px}
.chips b{font-weight:600;border-radius:99px;padding:1px 10px;color:var(--idle);background:var(--idle-bg)}
.chips b.right{color:var(--good);background:var(--good-bg)}
.chips b.wrong{color:var(--bad);background:var(--bad-bg)}
.note{color:var(--bad);font-size:13px;margin-top:6px;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(236px,100%),1fr));gap:14px;margin-bottom:14px}
.tile{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 16px 14px}
.tile h3{margin:0;font-size:13.5px;font-weight:600;color:var(--soft)}
.tile p{font-size:13px;color:var(--soft)}.tile p b{color:var(--ink);font-weight:600}
.tile .big{font-size:32px;line-height:1.3;font-weight:650;letter-spacing:-.02em;color:var(--ink);font-variant-numeric:tabular-nums}
.tile.small{background:none}.tile.small .big{font-size:24px;line-height:1.5}
.tile .big.none{font-size:15px;font-weight:500;line-height:2.8;letter-spacing:0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));gap:14px;margin-bottom:14px}
.figures.small{grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr))}
figure{margin:0;overflow-x:auto;background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 14px 8px}
figcaption{font-weight:600;font-size:13.5px}
.chart{display:block;width:100%;min-width:270px;max-width:820px;height:auto;font-family:inherit}
.chart .grid{stroke:var(--edge);stroke-width:1}
.chart .tick{fill:var(--soft);font-size:11.5px;font-variant-numeric:tabular-nums}
.chart .name{font-size:12px;font-weight:600}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.mark{stroke:var(--card);stroke-width:1.5}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.line{stroke:var(--c)}.mark,.name{fill:var(--c)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:0 0 10px;padding:0;font-size:13px;color:var(--soft)}
.legend li{display:flex;align-items:center;gap:7px}
.legend svg{width:32px;height:14px}
.scroll{overflow-x:auto;margin-bottom:14px}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;min-width:min(420px,100%)}
th,td{padding:6px 16px 6px 0;border-bottom:1px solid var(--edge);text-align:right;white-space:nowrap;vertical-align:baseline}
th:first-child{text-align:left;white-space:normal;min-width:11em}
thead th{color:var(--soft);font-weight:600}tbody th{font-weight:500}
.meaning{display:block;font-weight:400;max-width:56ch}
.bar{display:inline-block;min-width:118px;padding:0 6px;border-radius:4px;
background:linear-gradient(to left,var(--bar) calc(var(--share)*100%),transparent 0)}
details{margin-top:8px}
summary{cursor:pointer;font-weight:550;color:var(--accent);font-size:13.5px}
pre{overflow:auto;max-height:480px;background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:12px 16px;
font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.controls{display:flex;flex-wrap:wrap;gap:8px 26px;margin-bottom:12px;position:sticky;top:0;z-index:2;background:var(--page);padding:8px 0}
fieldset{border:0;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:4px;align-items:center}
legend{float:left;padding:0 8px 0 0;color:var(--soft);font-size:13px;font-weight:600}
.controls label{cursor:pointer;font-size:13px}
.controls input{position:absolute;opacity:0;pointer-events:none}
.controls span{display:block;padding:2px 11px;border:1px solid var(--edge);border-radius:99px;background:var(--card);color:var(--soft)}
.controls :checked+span{background:var(--accent);border-color:var(--accent);color:var(--page);font-weight:600}
.controls [type=checkbox]+span::before{content:"○ "}.controls [type=checkbox]:checked+span::before{content:"● "}
.controls :focus-visible+span{outline:3px solid var(--accent);outline-offset:2px}
.legend.boxes svg{width:44px;height:16px}.legend .ground{fill:#59616b}
.ramp{width:64px;height:12px;border-radius:3px;background:linear-gradient(90deg,#140b34,#84206b,#e55c30,#f6d746,#fcffc8)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(272px,100%),1fr));gap:16px;align-items:start}
.card{background:var(--card);border:1px solid var(--edge);border-radius:10px;overflow:hidden;padding-bottom:12px}
.card>h3,.card>div,.card>.note{margin-left:14px;margin-right:14px}
.card h3{margin-top:10px;line-height:1.35;overflow-wrap:anywhere}
.picture{display:block;width:100%;max-height:420px;background:#0d0f13}
.picture .missing{fill:#59616b}
.case,.ink{fill:none;vector-effect:non-scaling-stroke}
.case{stroke:#10121a;stroke-opacity:.75}

.fact{font-size:13px;color:var(--soft);margin-top:4px;overflow-wrap:anywhere}
.card .chips{gap:5px 8px}.card .chips b{padding:1px 8px}.card .split{margin-left:auto}.card details{margin-top:5px}.card summary{font-size:13px;font-weight:500}
.card table{font-size:12px;min-width:100%}.card th:first-child{min-width:8em}.card th,.card td{padding:3px 10px 3px 0}.card .bar{min-width:64px}
.texts{list-style:none;margin:6px 0 0;padding:0;font-size:13px;max-height:260px;overflow:auto}
.texts li{padding:4px 0 4px 10px;border-left:3px solid var(--good);margin-bottom:5px;overflow-wrap:anywhere}
.texts li.dropped{border-left:3px dotted var(--bad)}.texts li.dropped span{text-decoration:line-through;text-decoration-thickness:1px}
.texts small{display:block}
@media print{.controls{position:static}.card,figure,.tile{break-inside:avoid}}
"""
