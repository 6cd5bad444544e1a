"""The page's style sheet: one column on a phone, dark where the reader's system is, plain on paper."""

from __future__ import annotations

_LIGHT = """
--paper:#fff;--panel:#f6f7f9;--ink:#1b1f24;--soft:#57606a;--line:#e4e7eb;--line-strong:#8c959f;--accent:#0b5cad;
--bad:#b42318;--total:#5b6b7f;--down:#16845b;--up:#c2410c;
--layer-cache:#0072b2;--layer-routing:#009e73;--layer-compression:#e69f00;--layer-prompt-cache:#cc79a7;
--layer-batch:#56b4e9;--layer-quantization:#8a6d3b;
--model1:#0072b2;--model2:#e69f00;--model3:#009e73;--model4:#cc79a7;--model5:#d55e00;--model6:#56b4e9;--model7:#7a6ff0;
--other:#9aa4af;
"""
_DARK = """
--paper:#0f1419;--panel:#182028;--ink:#e6edf3;--soft:#a3b0bd;--line:#2a343f;--line-strong:#6b7785;--accent:#7cc0ff;
--bad:#ff8f82;--total:#8ea0b5;--down:#3fbf8b;--up:#ff9a62;
--layer-cache:#4aa8e0;--layer-routing:#2fc59a;--layer-compression:#f2b83a;--layer-prompt-cache:#e39cc3;
--layer-batch:#8fd0f5;--layer-quantization:#c3a46c;
--model1:#4aa8e0;--model2:#f2b83a;--model3:#2fc59a;--model4:#e39cc3;--model5:#ff8a4a;--model6:#8fd0f5;--model7:#a9a1ff;
--other:#75818e;
"""
_RULES = """
:root{color-scheme:light dark;%LIGHT%}
@media (prefers-color-scheme:dark){:root{%DARK%}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans KR","Noto Sans CJK KR","Apple SD Gothic Neo",
"Malgun Gothic",sans-serif;word-break:break-word}
:lang(ko){word-break:keep-all;overflow-wrap:anywhere}
main{max-width:64rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem}
h2{font-size:1.2rem;line-height:1.3;margin:2.25rem 0 .35rem}
p{margin:.35rem 0}
.soft,figcaption{color:var(--soft);font-size:.9375rem}
.bad{color:var(--bad);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin:1.25rem 0}
.card{background:var(--panel);border:1px solid var(--line);border-radius:.6rem;padding:.85rem 1rem}
.card b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.card span{display:block;color:var(--soft);font-size:.875rem;line-height:1.4}
.note{border-left:4px solid var(--accent);background:var(--panel);padding:.75rem 1rem;border-radius:0 .6rem .6rem 0;
margin:1rem 0}
.note h2{margin:0 0 .25rem;font-size:1rem}
figure{margin:.75rem 0 0}
figure svg{display:block;width:100%;height:auto;overflow:visible}
figcaption{margin-bottom:.75rem}
figure .narrow{display:none}
.box{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;margin:.75rem 0;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.9375rem;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .75rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;vertical-align:top}
th{font-weight:600;color:var(--soft);background:var(--panel)}
th.text,td.text{text-align:left}
td.name{white-space:normal;min-width:min(11rem,30vw);max-width:18rem;overflow-wrap:anywhere}
td.who{white-space:normal;min-width:4rem;max-width:11rem;overflow-wrap:anywhere}
th.share{white-space:normal;min-width:7.5rem;max-width:12rem;overflow-wrap:anywhere}
th:first-child,td:first-child{position:sticky;left:0;z-index:1}
td:first-child{background:var(--paper)}
tr.sum td:first-child{background:var(--panel)}
td.code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.85rem}
tr:last-child td{border-bottom:0}
tr.sum td{font-weight:600;background:var(--panel)}
td.minus{color:var(--bad)}
td small{display:block;color:var(--soft);font-size:.8125rem}
details{margin:.75rem 0}
summary{cursor:pointer;padding:.6rem 0;font-weight:600;font-size:1.05rem}
ul{padding-left:1.2rem;margin:.5rem 0}
li{margin:.4rem 0}
footer{margin-top:2.5rem;color:var(--soft);font-size:.875rem}
@media (max-width:44rem){
main{padding:1.1rem .9rem 2.5rem}
h1{font-size:1.5rem}
.cards{grid-template-columns:1fr 1fr;gap:.6rem}
.card{padding:.7rem .8rem}
.card b{font-size:1.2rem}
th,td{padding:.5rem .55rem}
figure .wide{display:none}
figure .narrow{display:block;max-width:30rem;margin:0 auto}
}
@media print{
:root{%LIGHT%}
body{font-size:11pt}
main{max-width:none;padding:0}
h2{break-after:avoid}
figure,.card,.note,tr{break-inside:avoid}
.box{overflow:visible;border:0}
table{font-size:8pt}
th,td{padding:.2rem .3rem}
th{white-space:normal}
td.code{white-space:normal;overflow-wrap:anywhere}
th.share{min-width:0}
.extra{display:none}
td.name{min-width:0}
td.who{min-width:2.6rem}
td small{font-size:7pt}
}
"""
CSS = _RULES.replace("%LIGHT%", _LIGHT).replace("%DARK%", _DARK)
