"""Protected words: inline code, URLs, addresses, paths, identifiers, quotations; numbers and negations. Pure.

Patterns begin at the start of a word or at a rare mark and are possessive or bounded, so that they take linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from services.compressor.spans import Kind, Span

_INLINE_CODE = re.compile(
    r"(?<!`)(`{1,2})(?!`)[^`\n]++(?:`(?!\1)[^`\n]++)?\1(?!`)|\$(?=[^$\n]{0,200}[\\^_{])[^$\n]{1,200}+\$"
)
_URL = re.compile(
    r"(?<![A-Za-z0-9+.])(?:[A-Za-z][A-Za-z0-9+.-]{0,20}+://|(?:mailto|tel|data|urn):(?=[\w+/])"
    r"|www\.(?=\w))[^\s<>\"“”「」『』`|]++"
    r"|(?<![\w.@/-])(?:[A-Za-z0-9-]{1,63}+\.){1,5}(?:com|org|net|io|dev|ai|app|edu|gov|info|co\.kr|go\.kr|or\.kr"
    r"|ac\.kr|kr|jp|de|uk)"
    r"(?![\w-]|\.\w)(?::\d{2,5})?(?:/[^\s<>\"“”「」『』`|]*+)?"
)
_CLOSERS = ".,;:!?'’)]}*。，、"
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}+@(?:[A-Za-z0-9-]{1,63}+\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_EXTENSIONS = (
    "py|js|ts|tsx|jsx|java|kt|go|rs|rb|php|cs|cpp|cc|hpp|h|c|sh|bash|sql|json|jsonl|yaml|yml|toml|ini|cfg|conf"
    "|xml|html|css"
    "|md|rst|txt|csv|tsv|pdf|docx?|xlsx?|pptx?|hwpx?|png|jpe?g|gif|svg|mp3|mp4|wav|zip|tar|gz|tgz|whl|exe|dll|so"
    "|log|lock|env|proto|ipynb"
)
_PATH = re.compile(
    r"(?<![\w/.:~@-])(?:"
    r"(?:~|\.{1,2})/[\w.@%+-]++(?:/[\w.@%+-]*+)*+"
    r"|/[\w.@%+-]++(?:/[\w.@%+-]*+)++"
    r"|[A-Za-z]:\\[^\s\"<>|*?]++|\\\\[\w.$-]++\\[^\s\"<>|*?]++"
    r"|(?:[\w.@-]++/){1,40}+[\w-]++(?:\.[A-Za-z0-9]{1,8}+)++(?!\w)"
    rf"|[\w-]{{1,100}}+(?:\.[\w-]{{1,40}}){{0,4}}\.(?:{_EXTENSIONS})(?![A-Za-z0-9_.-]|[./]\w))"
)
_IDENTIFIER = re.compile(
    r"(?<![A-Za-z0-9_])(?=[A-Za-z0-9_])(?:"
    r"[a-z]++(?:[A-Z][A-Za-z0-9_]*+(?:\.[A-Za-z_]\w*+)*+(?:\(\))?"
    r"|(?:\.[a-z][A-Za-z_]++){1,8}+(?<![a-z]\.[a-z])(?:\(\))?(?![\w.]|-))"
    r"|[A-Z][a-z]++[A-Z][A-Za-z0-9_]*+(?:\(\))?"
    r"|[A-Za-z0-9]*+_[A-Za-z0-9_]++(?:\.[A-Za-z0-9_]++)*+(?:\(\))?"
    r"|[A-Za-z]++(?:\(\)|\d++[A-Za-z0-9_]*+(?:[.-]\d[A-Za-z0-9]*+)*+(?:-[A-Za-z0-9]++(?:\.\d++)*+)*+"
    r"|(?:-[A-Za-z]{1,30}+){0,4}+-\d[A-Za-z0-9]*+(?:[-.][A-Za-z0-9]++)*+)"
    r"|[A-Z]{2,}+(?:-[A-Z0-9]++)++"
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
    r"|(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}"
    r"|(?=\d)(?:\d++(?:\.\d++){2,9}+(?:[-+][A-Za-z0-9]++(?:\.[A-Za-z0-9]++)*+)?|0[xX][0-9A-Fa-f]++"
    r"|\d{2,4}-\d{3,4}-\d{4}(?!\d)|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?!\d)|\d{6}-[1-8]\d{6}(?!\d)|\d{9,}+(?![.,]?\d)"
    r"|\d++[A-Za-z]++\d[A-Za-z0-9]*+)"
    r")"
)
# Each begins with a rare mark, for which the whole text is searched fast.
_MARKED = re.compile(
    r"#(?<![\w&/]#)[A-Za-z0-9_가-힣]++|@(?<![\w&/]@)[A-Za-z0-9_가-힣]++"
    r"|\$(?<![\w$]\$)(?:[A-Za-z_]\w*+|\{[^{}\n]{1,100}+\})|-(?<![\w-]-)-?[a-z][\w-]*+(?==)|-(?<![\w-]-)-[a-z][\w-]++"
    r"|\{\{?[^{}\n\"']{1,60}+\}\}?|<\|?[A-Za-z_][\w-]{0,40}+\|?>|%[sdif](?![A-Za-z])|%\([a-z_]{1,40}+\)[sdif]"
    r"|\[\d{1,4}\]"
)
_QUOTATION = re.compile(
    r"\"(?=[^\s\"])[^\"\n]*+(?:\n(?![ \t]*+\n)[^\"\n]*+){0,20}+\"|“[^“”]{1,2000}+”|‘(?:[^‘’\n]"
    r"|’(?=[A-Za-z])){1,500}+’"
    r"|「[^「」]{1,2000}+」|『[^『』]{1,2000}+』|《[^《》]{1,500}+》|〈[^〈〉]{1,500}+〉|«[^«»]{1,2000}+»"
    r"|„[^„“”]{1,2000}+[“”]"
    r"|'(?<![\w'’]')(?=[^\s'])[^'\n]{1,300}+(?:'(?=[a-z])[^'\n]{1,300}+){0,4}'(?!\w)"
)

_UNITS = (
    r"[%‰°](?:[CF]\b)?|℃|percent\b|(?:[kcmµnMG]?[mgsWVAJNBb]|[kMG]?Hz|[KMGTP]i?B|ha|mi|ft|in|lbs?|oz|ml|mL|l|L"
    r"|dB|rpm|mph|km/h|m/s|kWh|kcal|bps|px)"
    r"(?![A-Za-z])|(?:st|nd|rd|th|s|x)(?![A-Za-z])|(?:a\.?m|p\.?m|AM|PM|BC|AD|BCE|CE)(?![A-Za-z])"
    r"|(?:thousand|million|billion|trillion|hundred|dozen|dollars?|euros?|won|yen|pounds?|cents?|tons?|tonnes?"
    r"|people|times"
    r"|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|miles?|met(?:er|re)s?|kilomet(?:er"
    r"|re)s?|feet|inches|acres?"
    r"|points?|degrees?|USD|EUR|KRW|GBP|JPY|tokens?)(?![A-Za-z])"
)
_COUNTERS = (
    "퍼센트|프로|달러|유로|위안|엔|원|명|분|인|개월|개국|개소|개|가지|년대|년도|년|월|일|시간|시|초|주년|주일|주"
    "|회|번째|번|세기|세|살|대|권|장|마리|병|잔|채|척"
    "|층|호선|호|동|등급|등|위|점|도|배|킬로미터|킬로그램|킬로|센티미터|센티|미터|그램|톤|평|리터|쪽|페이지|조"
    "|항|차|기|곳|건|종|팀|경기|승|패|무|골|편|곡|자|박|석|여"
)
_AMOUNT = re.compile(
    r"[0-9](?<![A-Za-z0-9_][0-9])\d*+(?:[,.:/~–−×-]\d++)*+(?:\s?[십백천만억조]+(?:\s?\d++[십백천만억]*+)*+)?"
    rf"(?:\s?(?:{_COUNTERS})|\s?(?:{_UNITS}))?"
)
_BEFORE_AMOUNT = re.compile(r"(?:[-+−±~≈]|제\s?|약\s?)?(?:[$€£¥₩]\s?)?\Z")
_BEFORE_MARKS = frozenset("-+−±~≈제약$€£¥₩")
_NUMBER_WORD = re.compile(
    r"(?<![A-Za-z])(?=[tfsenhmbdTFSENHMBD])(?i:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|thirteen|fourteen|fifteen"
    r"|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundreds?"
    r"|thousands?|millions?"
    r"|billions?|dozens?|half|twice|thrice)(?![A-Za-z])(?:-(?i:one|two|three|four|five|six|seven|eight"
    r"|nine)(?![A-Za-z]))?"
)
_NATIVE_NUMBER = re.compile(
    r"[한두세네다여일아열스수몇](?<![가-힣].)(?:(?<=한)두|(?<=두)세|(?<=다)섯|(?<=여)섯|(?<=일)곱|(?<=여)덟"
    r"|(?<=아)홉|(?<=열)[한두]|(?<=스)[무물]"
    r"|(?<=수)[십백천만]|(?<=[한두세네열몇]))\s?(?:명|개|번째|번|가지|살|시간|시|달|사람|마리|권|곳|배|잔|대"
    r"|차례|쪽|해|층|줄|편|척|채|병|건)(?![가-힣]{3})"
)
_NEGATION_EN = re.compile(
    r"(?<![A-Za-z])(?=[nwceuhbrlfiasdmo])(?:not(?! only\b)|never|no(?!\.? ?\d|\. ?\d)|none|nobody|nothing"
    r"|nowhere|neither|nor|without|cannot|except|unless|hardly|barely"
    r"|rarely|seldom|lacks?|lacked|lacking|fail(?:s|ed)? to|refus(?:es?|ed)(?: to)?|exclud(?:es?|ed|ing)|rather"
    r" than|instead of"
    r"|(?:ai|are|ca|could|did|does|do|had|has|have|is|might|must|need|ought|sha|should|was|were|wo|would)n['’]?t)\b",
    re.IGNORECASE,
)
_NEGATION_KO = re.compile(
    r"(?<![가-힣])안(?=[ ]?(?:되|돼|됩|된|될|됐|하|해|했|합|한다|할|함|가[^격방족]|갔|갑|간다|오[^늘전후]|왔|온"
    r"|옵|보[^건호]|봤|먹|마시|자|잤|써|쓰|썼|있|나[^라]|난|났|좋|맞|주|줘|줬|받|팔|사[^람]|샀|들|듣|알|이루))"
    r"|(?<![가-힣])못(?=[ ]?(?:하|해|했|합|한|할|함|가|갔|갑|간|오|왔|온|보|봤|본|볼|먹|자|잤|찾|쓰|썼|들|알|받"
    r"|살|되|된|될|박지|이기|이겼|미치|미쳤|읽|외|만나|만났))"
    r"|지(?:는|도|를|가|조차|만)?[ ]?(?:않|못|말(?=[고라자며면아]|[ ]?것)|마(?=[세십라요시]|[.!]|$))|(?:치|잖|찮)않"
    r"|아니(?=다|라|고|에|며|었|한|하|요|냐|기|므|지|[ .,]|$)|아닌|아닐|아님|아닙|아녔|없|모르|몰라|몰랐|불가"
    r"|금지|제외"
    r"|(?<![가-힣])(?:미(?=포함|완료|완성|지급|사용|적용|정[ ]|달|납|확인|등록|해결|성년)|비(?=공개|활성|정상"
    r"|회원|대상|과세|합리)|불(?=가능|필요|확실|법|합격|만족|참)|무(?=관|효|상|료|제한))"
)


def words(text: str) -> Iterator[Span]:
    """The hard spans within lines, in no order; they may overlap."""
    if "`" in text or "$" in text:
        yield from _found(_INLINE_CODE, text, Kind.CODE)
    for match in _URL.finditer(text) if "." in text or ":" in text else ():
        end = _trimmed(text, match.start(), match.end())
        yield Span(match.start(), end, Kind.URL)
    if "@" in text:
        yield from _found(_EMAIL, text, Kind.EMAIL)
    if "/" in text or "\\" in text or "." in text:
        yield from _found(_PATH, text, Kind.PATH)
    yield from _found(_IDENTIFIER, text, Kind.IDENTIFIER)
    yield from _found(_MARKED, text, Kind.IDENTIFIER)
    yield from _found(_QUOTATION, text, Kind.QUOTATION)


def soft_words(text: str) -> Iterator[Span]:
    """Numbers with their units, and negations, in no order."""
    for match in _AMOUNT.finditer(text):
        start = match.start()
        before = text[start - 1 : start]
        if before == " ":
            before = text[start - 2 : start - 1]
        if before and before in _BEFORE_MARKS:
            found = _BEFORE_AMOUNT.search(text, max(0, start - 4), start)
            start = start if found is None else found.start()
        yield Span(start, match.end(), Kind.NUMBER)
    yield from _found(_NUMBER_WORD, text, Kind.NUMBER)
    yield from _found(_NATIVE_NUMBER, text, Kind.NUMBER)
    yield from _found(_NEGATION_EN, text, Kind.NEGATION)
    yield from _found(_NEGATION_KO, text, Kind.NEGATION)


def _found(pattern: re.Pattern[str], text: str, kind: Kind) -> Iterator[Span]:
    for match in pattern.finditer(text):
        yield Span(match.start(), match.end(), kind)


def _trimmed(text: str, start: int, end: int) -> int:
    """The end of a URL without the sentence's own punctuation; a bracket that the URL opened stays."""
    while end > start and text[end - 1] in _CLOSERS:
        if text[end - 1] == ")" and text.count("(", start, end) >= text.count(")", start, end):
            break
        end -= 1
    return end
