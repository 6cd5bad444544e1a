"""Questions whose answer is nobody else's or soon stale: personal data, account data, time. Pure.

Precision matters as much as recall: "how do I check my balance in the app" is everybody's question, "what is my
balance" is not; "I lost my card today" tells a story, "which shops are open today" is about today. Weeks and longer
periods ("this year") are left to the entry's time to live, unless what is asked for moves faster.
"""

from __future__ import annotations

import re

Rule = tuple[str, re.Pattern[str]]


def _rules(*rules: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in rules)


_IDENTITY = _rules(
    ("e-mail address", r"[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{2,}"),
    ("phone number", r"(?<!\d)(?:\+\d{1,3}[ -]?)?\(?0\d{1,2}\)?[ -]?\d{3,4}[ -]?\d{4}(?!\d)"),
    ("phone number", r"(?<!\d)(?:\+?1[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\d)"),
    ("phone number", r"\+\d{1,3}[ -]?\d{1,4}(?:[ -]?\d{2,4}){2,4}"),
    ("identity number", r"(?<!\d)\d{6}-[1-4]\d{6}(?!\d)|(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
    ("card or account number", r"(?<!\d)(?:\d[ -]?){12,18}\d(?!\d)|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b"),
    (
        "reference number",
        r"(?:account|order|customer|member|invoice|booking|reservation|ticket|tracking|policy|passport|case)"
        r"(?: ?(?:number|no\.?|id|#))?(?: is)?:? ?#?(?=[A-Za-z-]{0,6}\d{4,})"
        r"|(?:주문|계좌|고객|회원|예약|송장|운송장|접수|여권|카드) ?번호(?:는|가|이|:)? ?[A-Za-z-]{0,6}\d{4,}",
    ),
    ("stated name", r"\bmy name is\b|(?:제|내) 이름은|저는 [가-힣]{2,4}(?:이라고|라고)"),
)

_HOW_TO = re.compile(
    r"\bhow (?:do|can|could|should|would|to|does|is|are)\b|\bcan i\b|\bwhere (?:do|can) i\b|\bways? to\b|\bis there\b"
    r"|\bis it possible\b|\bable to\b|\bsteps\b|\bwhy\b|\bwhat (?:do|should|can) i\b|\bwhat happens\b"
    r"|방법|어떻게|어떡|하는 ?법|[는] ?법|절차|왜(?![가-힣])|수 ?있|되나|려면|가능",
    re.IGNORECASE,
)
"""Instructions and reasons are the same for everybody, unless they ask how things stand."""

_OWN = (
    r"(?:balances?|orders?|packages?|parcels?|deliver(?:y|ies)|shipments?|refund status|transactions?|statements?"
    r"|credit scores?|credit limit|bills?|invoices?|due dates?|points|rewards|miles|vacation days|pto|leave balance"
    r"|salary|paycheck|payslip|schedule|calendar|appointments?|meetings?|reminders?|reservations?|bookings?|flights?"
    r"|to-?do list|shopping list|subscriptions?|plan|usage|data usage|grades?|results?|claims?|applications?|tickets?"
    r"|tax refund|spending|income|loans?|mortgage|rent|account number|routing number|loyalty status)"
)
_ACCOUNT = _rules(
    (
        "own account",
        r"\b(?:what(?:'s| is| are| was| were)?|show|tell|give|read|list|check|see|view|look up|pull up|display|find)"
        r"(?: me| us| out| is| are| was)*(?: on| in| about| the \w+ (?:of|on|for))? (?:my"
        rf"|our) (?:\w+ ){{0,3}}{_OWN}\b",
    ),
    (
        "own account",
        r"\bwhere(?:'s| is| are) (?:my|our) (?:\w+ ){0,2}(?:orders?|packages?|parcels?|deliver\w+|shipments?"
        r"|luggage)\b",
    ),
    (
        "own account",
        r"\bhow much (?:money )?(?:do i (?:have|owe)|did i (?:spend|pay|earn)|have i (?:spent|left)"
        r"|is in my)\b",
    ),
    (
        "own account",
        rf"\b(?:status|progress) of (?:my|our|the) {_OWN}\b|\btrack my {_OWN}\b"
        rf"|\bmy (?:\w+ )?{_OWN} status\b",
    ),
    (
        "own account",
        rf"\bwhen (?:is|are|was) (?:my|our) (?:next |last )?(?:\w+ )?{_OWN}\b|\bdo i have any (?:\w+ )?{_OWN}\b",
    ),
    ("own account", rf"\b(?:has|have|did|is|are) my (?:\w+ )?{_OWN} (?:shipped|been|arrived?|left|due|ready)\b"),
    (
        "own account",
        r"(?<![가-힣])(?:내|제|나의|저의|우리) ?(?:[가-힣]{1,6} ?){0,3}?"
        r"(?:잔액|잔고|통장|주문|배송|택배|예약|일정|스케줄|포인트|마일리지|청구|내역|대출|성적|연차|휴가|한도"
        r"|요금|데이터|약속|신용 ?점수)"
        r"[가-힣 ]{0,12}?(?:얼마|어디|언제|몇|알려|보여|확인해|조회|남았|남은|뭐|왔|어때|상태|있어|있나|있니|있지)",
    ),
    (
        "own account",
        r"(?<![가-힣])(?:내가|제가) (?:주문|결제|예약|신청)한 ?(?:거|것|상품|물건"
        r"|택배)[가-힣 ]{0,8}(?:어디|언제|왔|도착)",
    ),
    ("own account", r"(?:잔액|잔고)(?:이|가|은|는)? ?(?:얼마|조회해|확인해|알려|남았)"),
)

_ENGLISH_QUESTION = (
    r"(?:^|[.?!,;] *)(?:and |so |but |please |hey |ok )*(?:what|what's|whats|which|who|who's|whos|where|when|how"
    r"|is|are|will|do|does|did|can you tell"
    r"|tell me|show|give me|any|has|have)\b[^.?!]{0,120}?"
)
_TIME = _rules(
    ("clock", r"\bwhat time (?:is it|it is)\b|\bwhat (?:day|date) is it\b|\btoday'?s date\b|(?:지금|현재) ?(?:은"
        r"|이)? ?몇 ?시|^몇 ?시(?:야|에요|예요|인가요|지|니|냐|죠)?\??$|오늘 ?(?:이|은)? ?(?:며칠|무슨 ?요일)"),
    (
        "weather",
        r"\b(?:weather|forecast)\b(?! (?:app|widget|station|balloon|channel))|\b(?:will"
        r"|is) it (?:going to )?(?:rain|snow|be (?:hot|cold|sunny))(?:ing)?\b"
        r"|\btemperature outside\b|\bhow (?:hot|cold|warm) is it\b"
        r"|(?<!지난 )(?<![한은는] )(?:날씨|기온|미세먼지|황사)(?! ?(?:마스크|앱|어플|일수))(?:이|가|는|은|를|을"
        r"|도)?[가-힣 ]{0,10}(?:어때|어떤|어떻|알려|몇|얼마|심한|심해|좋아|좋은|나빠|나쁜|말해|궁금|춥|더워|맑"
        r"|흐|예보|추워)"
        r"|(?:오늘|내일|모레|지금|현재|이번 ?주말?)[가-힣 ]{0,14}(?:비|눈)(?:가|이)? ?(?:오|와|올|내리|내려)",
    ),
    (
        "price",
        r"\b(?:price|cost|value|quote) of (?:gold|silver|oil|gas|crude|bitcoin|btc|ethereum|[A-Z]{2,5}\b"
        r"|\w+ (?:stock|shares))"
        r"|\b(?:stock|share|gold|bitcoin|oil|gas|crypto\w*) prices?\b|\b(?:current|today'?s|latest|live"
        r"|right now)[\w ]{0,20}\b(?:price|rate|cost)s?\b"
        r"|\bwhat(?:'s| is| are) the (?:\w+ ){0,3}(?:exchange|interest|mortgage) rates?\b(?! (?:policy"
        r"|calculated|based))|\bdow jones\b|\bnasdaq\b"
        r"|시세|(?<![가-힣])(?:[가-힣]{2,8} )?주가(?:는|가|를)? ?(?:얼마|알려|어때|어떻|몇|말해|올|내|떨어|전망"
        r"|$|\?)|(?<![가-힣])(?:[가-힣]{2,4} ?)?(?:환율|코스피|코스닥|금값|집값|국제 ?유가|기름값)(?:이|은|는|을"
        r"|를)?[가-힣 ]{0,8}(?:얼마|알려|어때|어떻|몇|말해|궁금)|(?:오늘|지금|현재|요즘)[가-힣 ]{0,14}가격",
    ),
    (
        "news",
        r"\b(?:latest|recent|today'?s|breaking|current) (?:\w+ ){0,2}(?:news|headlines?|events?|scores?|results?"
        r"|updates?)\b|\bheadlines\b"
        r"|\bwhat(?:'s| is) (?:in|on) the news\b|\bnews (?:about|on|today)\b|\bscore of\b"
        r"|\bwho won (?:the )?(?:game|match|last night|yesterday)"
        r"|속보|(?:최신|오늘|요즘|최근)[가-힣 ]{0,8}(?:뉴스|소식|기사|이슈)|(?<!좋아하는 )뉴스 ?(?:좀|를"
        r"|을)? ?(?:알려|읽어|들려|요약해|뭐)",
    ),
    ("traffic", r"\btraffic\b(?= (?:on|in|at|like|now|today|jam|situation|right|look|conditions?|report))"
        r"|\bhow(?:'s| is) (?:the )?traffic\b|교통 ?(?:상황|체증|정보)|길 ?(?:이)? ?막히"),
    ("stock", r"\b(?:in stock|sold out|still available)\b|재고(?:가|는|이)? ?(?:있|남)|품절(?:인|됐|이)"),
    (
        "now",
        _ENGLISH_QUESTION
        + r"\b(?:right now|at the moment|currently|nowadays|these days|as of now|so far this|latest"
            r"|most recent(?! transaction))\b"
        r"|\b(?:who|what|which)(?:'s| is| are)? (?:the )?current (?!account|card|plan|password|email|address"
        r"|phone|pin|balance)\w+"
        r"|\b(?:open|closed|playing|happening|trending|live|running|going on|showing|on tv) (?:right )?now\b"
        r"|\bnow (?:open|playing|showing)\b",
    ),
    (
        "now",
        r"(?<![가-힣])(?:지금|현재|실시간)(?!까지)(?![가-힣 ]{0,20}(?:싶|볼만|볼 만|고르|로그인|키려|어플"
        r"|앱))[가-힣 ]{0,20}(?:얼마|어디|누구|몇|뭐|무엇|어때|상태|상황|있(?:어|나|니)|인가|인지|알려|순위"
        r"|[와오]\?|오나|는지)",
    ),
    ("now", r"(?<![가-힣])현(?:직|재)? ?(?:대통령|총리|장관|시장|대표|회장)|(?<![가-힣])(?:요즘|최근"
        r"|최신)(?![가-힣 ]{0,8}즐겨)[가-힣 ]{0,16}(?:유행|인기|트렌드|화제|핫한|뜨는|개봉|순위|버전)"),
    ("day", _ENGLISH_QUESTION + r"\b(?:today|tonight|tomorrow|yesterday|this (?:morning|afternoon|evening)"
        r"|last night)\b"),
    ("day", r"^(?:\w+ ){0,4}(?:today|tonight|tomorrow)(?:'s \w+)?[?.!]?$"),
    (
        "day",
        r"(?<![가-힣])(?:오늘|내일|모레|어제|그제|그저께)(?![가-힣]*(?:처럼|같이))"
        r"[가-힣 ]{0,24}(?:언제|얼마|어디|누구|누가|몇|뭐|무엇|무슨|어때|어떤|며칠|알려|휴일|쉬|열어|여나|영업"
        r"|하나요|하니|인가|일까|할까|있어|있나|있니|날씨)",
    ),
)  # fmt: skip


def identifies(text: str) -> str:
    """The rule by which a text holds what identifies a person or an account; empty when none does."""
    return _first(_IDENTITY, text)


def own_account(text: str) -> str:
    """The rule by which a question asks how somebody's own account, order or calendar stands; empty when none does."""
    if _HOW_TO.search(text) and not _STATE.search(text):
        return ""
    return _first(_ACCOUNT, text)


_EXPLAIN = re.compile(r"\bwhy\b|\bexplain\b|\bhow (?:do|does|are|is \w+ \w+ (?:set|calculated))\b", re.IGNORECASE)
_STATE = re.compile(r"\bhow much (?:money )?(?:do|did|have|is) (?:i|in|left)", re.IGNORECASE)


def time_bound(text: str) -> str:
    """The rule by which the answer changes with the hour; empty when none applies."""
    rule = _first(_TIME, text)
    return "" if rule == "price" and _EXPLAIN.search(text) else rule


def _first(rules: tuple[Rule, ...], text: str) -> str:
    return next((name for name, pattern in rules if pattern.search(text)), "")
