"""The style sheet of `page`, as text, so that the page is one file; light and dark.

Colours are named by meaning (good, bad, open), and no meaning is carried by colour alone.
"""

STYLE = """
:root {
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d1f24; --soft: #626773; --rule: #e3e1dc;
  --good: #18794e; --bad: #c02f3a; --open: #946300;
  --good-bg: #e2f4e9; --bad-bg: #fce8e8; --open-bg: #fbefd3;
  --first: #2f5fd0; --second: #cf5a12; --third: #18794e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1c1f25; --ink: #e8e6e1; --soft: #a0a5b0; --rule: #31353d;
    --good: #5fcf98; --bad: #ff8b8b; --open: #e9bd58;
    --good-bg: #163526; --bad-bg: #451e22; --open-bg: #3b2f12;
    --first: #86a9ff; --second: #ff9e5e; --third: #5fcf98;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
p { margin: 0 0 .6rem; }
section { margin-top: 2.75rem; }
h1 { margin: 0 0 .5rem; font-size: clamp(2.2rem, 7vw, 3.2rem); line-height: 1.1;
  letter-spacing: -.02em; }
h2 { margin: 0 0 .9rem; font-size: 1.2rem; letter-spacing: -.005em; }
h1.good, .good .sign { color: var(--good); }
h1.bad, .bad .sign { color: var(--bad); }
h1.open { color: var(--open); }
ul { list-style: none; margin: 0; padding: 0; }
section > p { max-width: 46rem; }
section:last-child > p { color: var(--soft); font-size: .93rem; }
.kicker, .what { margin: 0 0 .2rem; color: var(--soft); font-size: .85rem; }
.what::first-letter, .checks b::first-letter { text-transform: uppercase; }
.headline { max-width: 46rem; font-size: 1.12rem; }
.detail { color: var(--soft); font-size: .88rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 1rem 1.15rem; min-width: 0; }
.cards, .answers, .charts { display: grid; gap: 1rem;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }
.cards { margin-top: 1.4rem; }
.big { margin: 0 0 .35rem; font-size: 1.9rem; font-weight: 650; line-height: 1.2;
  letter-spacing: -.01em; }
.big .old, .big .arrow { color: var(--soft); font-weight: 400; }
.big .arrow { margin: 0 .35em; }
.card .detail { margin: 0; }
.chip { display: inline-block; padding: .08rem .55rem; border-radius: 99px; font-size: .82rem;
  font-weight: 600; white-space: nowrap; }
.chip.good { color: var(--good); background: var(--good-bg); }
.chip.bad { color: var(--bad); background: var(--bad-bg); }
.chip.open { color: var(--open); background: var(--open-bg); }
.checks { display: grid; gap: .9rem 1.5rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.checks li { display: flex; gap: .7rem; }
.checks .sign { font-weight: 700; font-size: 1.1rem; line-height: 1.4; }
.checks b, .checks .detail { display: block; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; }
thead th { padding: 0 .6rem .4rem; color: var(--soft); font-size: .82rem; font-weight: 500;
  text-align: left; white-space: nowrap; border-bottom: 1px solid var(--rule); }
tbody th { padding: .6rem .6rem .6rem 0; font-weight: 600; text-align: left;
  vertical-align: top; }
thead th:first-child { padding-left: 0; }
tbody th .detail { display: block; font-weight: 400; }
td { padding: .6rem; vertical-align: top; }
tr:not(.note) > * { border-top: 1px solid var(--rule); }
td.number, th.number { text-align: right; white-space: nowrap; }
td[data-label="95 % interval"] .detail { display: block; text-align: center; white-space: nowrap; }
tr.note td { padding: 0 0 .6rem; color: var(--soft); font-size: .85rem; }
svg { display: block; }
.interval { width: 100%; min-width: 120px; max-width: 200px; height: 20px; margin: 0 auto; }
.axis, .grid { stroke: var(--rule); stroke-width: 1; }
.zero { stroke: var(--soft); stroke-width: 1; }
.reach { opacity: .38; }
.good .reach, .good .dot, .good .fill { fill: var(--good); }
.bad .reach, .bad .dot, .bad .fill { fill: var(--bad); }
.open .reach, .open .dot { fill: var(--open); }
figure { margin: 0; min-width: 0; }
.chart { width: 100%; height: auto; }
.tick, .legend { fill: var(--soft); font-size: 12px; }
.legend { fill: var(--ink); }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.line.first { stroke: var(--first); } .line.second { stroke: var(--second); }
.line.third { stroke: var(--third); }
.line.faint { stroke: var(--first); stroke-width: 1; opacity: .28; }
.mark.second { fill: var(--second); } .mark.third { fill: var(--third); }
.mark.first, .mark.faint { fill: var(--first); }
figcaption { color: var(--soft); font-size: .85rem; }
.groups li { display: grid; grid-template-columns: minmax(0, 14rem) 1fr 6.5rem; gap: .9rem;
  align-items: center; padding: .14rem 0; }
.groups .name { overflow-wrap: anywhere; font-size: .92rem; line-height: 1.3; }
.groups .number { text-align: right; font-size: .88rem; }
.groups .gap { display: block; padding: .35rem 0; color: var(--soft); font-size: .85rem;
  text-align: center; }
.bar { width: 100%; height: 14px; }
.sample { margin-bottom: 1rem; }
.sample .asked { display: flex; flex-wrap: wrap; gap: .3rem .7rem; align-items: baseline;
  margin-bottom: .8rem; }
.asked .said { font-weight: 600; }
.said { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  max-height: 16rem; overflow-y: auto; }
.answers { padding: .8rem 0; margin-bottom: .8rem; border: solid var(--rule);
  border-width: 1px 0; }
details summary { cursor: pointer; margin-bottom: 1rem; color: var(--soft); }
ins { background: var(--good-bg); text-decoration: none; border-bottom: 2px solid var(--good); }
del { background: var(--bad-bg); text-decoration: none; border-bottom: 2px dotted var(--bad); }
.findings { margin: 1rem 0 0; max-width: 46rem; }
.findings li { padding: .3rem 0 .3rem .9rem; border-left: 3px solid var(--open); margin: .3rem 0; }
.wide { overflow-x: auto; }
.costs { display: grid; gap: 1rem 1.5rem; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.costs dt { color: var(--soft); font-size: .85rem; }
.costs dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  main { padding-top: 1.5rem; }
  .cards, .charts, .checks { grid-template-columns: minmax(0, 1fr); }
  .groups li { grid-template-columns: minmax(0, 1fr) 5.6rem; gap: .1rem .7rem; padding: .35rem 0; }
  .groups .bar { grid-column: 1 / -1; grid-row: 2; }
  .measures thead { display: none; }
  .measures, .measures tbody { display: block; }
  .measures tr { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 .5rem; }
  .measures tr > * { border: 0; }
  .measures tbody th, .measures td[data-label="95 % interval"], .measures tr.note td {
    grid-column: 1 / -1; }
  .measures tbody tr:not(.note) { border-top: 1px solid var(--rule);
    padding: .4rem 0; }
  .measures td { padding: .3rem 0; }
  .measures td.number { text-align: left; }
  .measures td[data-label]::before { content: attr(data-label); display: block;
    color: var(--soft); font-size: .8rem; }
  .measures tr.note td { padding-bottom: .7rem; }
  .interval { max-width: none; }
  .tick, .legend { font-size: 14px; }
}
@media (max-width: 34rem) { .answers { grid-template-columns: minmax(0, 1fr); } }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
