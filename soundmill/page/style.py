"""The style of every page, by day and by night."""

STYLE = """\
:root { color-scheme: light dark; --ink: #212529; --soft: #5c6670; --line: #e3e7eb; --card: #fff; }
:root { --ground: #f4f6f8; --hot: #c2255c; --right: #e6f7ea; --wrong: #fdecef; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa4ae; --line: #31383f; --card: #1c2126; }
  :root { --ground: #12161a; --hot: #f783ac; --right: #1d3a26; --wrong: #46212c; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
main > h3 { margin: 1.5rem 0 .6rem; }
small, .soft { color: var(--soft); font-weight: 400; }
.hot { color: var(--hot); }
.panel, article { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.2rem; }
.panel svg { width: 100%; height: auto; display: block; }
.paper { background: #fff; }
.verdict { border-left: 5px solid var(--hot); margin-top: 1.25rem; }
.verdict p { margin: .25rem 0; }
article { min-width: 0; display: flex; flex-direction: column; }
article p { margin: .2rem 0 0; font-size: .88rem; overflow-wrap: anywhere; }
article svg { width: 100%; height: auto; display: block; margin-top: auto; padding-top: .5rem; }
.scroll { overflow-x: auto; }
table { font-size: .9rem; border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .82rem; }
tr > :first-child { text-align: left; }
tbody tr:last-child > * { border-bottom: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .88rem; margin: 1rem 0 0; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); gap: 1rem; }
.alone { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr)); gap: 1rem; }
.pair { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .9rem; margin-top: .7rem; align-items: end; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .82rem; line-height: 1.35; overflow-wrap: anywhere; color: var(--soft); }
figcaption small { display: block; }
figcaption b { color: var(--ink); }
figure img { width: 100%; height: 150px; border-radius: 6px; display: block; margin-top: .4rem; }
.low img { height: 110px; }
.low figure:first-child figcaption { color: var(--hot); font-weight: 600; }
.picture { position: relative; margin-top: .4rem; border-radius: 6px; overflow: hidden; }
.picture img { margin: 0; }
.picture[role] { cursor: pointer; touch-action: manipulation; }
.picture:focus-visible { outline: 3px solid var(--hot); outline-offset: 2px; }
.cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff; opacity: 0; pointer-events: none; }
.current .cursor { opacity: .9; }
.current .picture { box-shadow: 0 0 0 3px var(--hot); }
audio { width: 100%; height: 34px; margin-top: .4rem; }
.note { font-size: .78rem; color: var(--soft); margin: .2rem 0 0; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin-top: .7rem; font-size: .78rem; }
.chip { background: var(--ground); border: 1px solid var(--line); border-radius: 99px; padding: .05rem .6rem; }
.right { background: var(--right); }
.wrong { background: var(--wrong); }
.chips code { color: var(--soft); margin-left: auto; overflow-wrap: anywhere; }
.rows { display: grid; gap: 1rem; margin-top: 1rem; }
.rows .pair { grid-auto-flow: row; grid-template-columns: repeat(auto-fit, minmax(min(150px, 45%), 1fr)); align-items: start; }
.none { align-self: center; text-align: center; }
.filter { position: sticky; top: 0; z-index: 1; background: var(--ground); border-bottom: 1px solid var(--line); }
.filter { padding: .6rem 0; margin-top: 1rem; font-size: .88rem; }
.filter > div { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center; margin-bottom: .3rem; }
.filter label { display: inline-flex; gap: .3rem; align-items: center; }
input, select, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
input, select, button { padding: .25rem .5rem; max-width: 100%; accent-color: var(--hot); }
input[type=number] { width: 5.5rem; }
output { margin-left: auto; color: var(--soft); }
kbd { font: inherit; border: 1px solid var(--line); border-radius: 4px; padding: 0 .3rem; background: var(--card); }
#stage .panel { max-width: 620px; margin-top: 1.5rem; }
#stage label { display: block; margin: .8rem 0; }
#stage .choice { display: inline-block; margin: .3rem 1rem .3rem 0; }
#stage .text { font-size: 1.2rem; font-weight: 600; overflow-wrap: anywhere; }
.player { display: grid; grid-template-columns: max-content 1fr; gap: .8rem; align-items: center; margin: .8rem 0; }
.play, .next { padding: .5rem 1rem; cursor: pointer; }
.next { background: var(--hot); border-color: var(--hot); color: var(--card); font-weight: 600; margin-top: .8rem; }
.next:disabled { opacity: .35; cursor: default; }
progress { width: 100%; accent-color: var(--hot); }
fieldset { border: 0; border-top: 1px solid var(--line); margin: 1rem 0 0; padding: .8rem 0 0; }
legend { font-weight: 600; padding: 0; float: left; width: 100%; margin-bottom: .4rem; }
legend + * { clear: both; }
fieldset input[type=range] { width: 100%; padding: 0; }
.unset { opacity: .45; }
.ends { display: flex; justify-content: space-between; gap: 1rem; font-size: .88rem; color: var(--soft); }
.ends output { margin: 0; font-weight: 600; color: var(--ink); }
[hidden] { display: none !important; }
@media (max-width: 600px) {
  main { padding: 1.25rem .75rem 3rem; }
  h1 { font-size: 1.5rem; }
  .panel, article { padding: .75rem .8rem; }
  .filter { position: static; }
  .keys { display: none; }
  #stage .choice { display: block; }
}
pre { font-size: .78rem; overflow-x: auto; margin: .8rem 0 0; }
li { margin: .2rem 0; overflow-wrap: anywhere; }
"""
