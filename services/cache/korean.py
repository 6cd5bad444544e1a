"""What a Korean question negates, asks for, demands, and who does what to whom in it. Pure.

Rules over words between spaces and their endings, no dictionary: a morphological analyser was weighed and left out
(README). A word's key is its first two syllables, or its first one before an ending, with final consonants that
conjugation adds and vowels that it contracts taken away: "켜지", "켰", "켤까" are one key.
"""

from __future__ import annotations

import re
from functools import lru_cache

from services.cache.reading import Act, Negation, Reading

_ENDINGS = frozenset(
    "다고는은을를이가도만에의로와과랑나니냐까요지면서야라게던든기음자어아여줘주세시습겠었았져진질죠네데며거것수놓두둬봐버"
)
_LIGHT = frozenset("하해한할합했함되돼된될됩됐됨시")
"""First syllables of the verbs that follow a noun: 하다, 되다, 시키다."""
_VOWELS = {6: 20, 9: 8, 14: 13, 10: 11, 4: 18}
"""ㅕ to ㅣ, ㅘ to ㅗ, ㅝ to ㅜ, ㅙ to ㅚ, ㅓ to ㅡ: what a vowel was before -어 contracted it."""
_FINALS = frozenset((0, 4, 8, 17, 20))
"""None, ㄴ, ㄹ, ㅂ, ㅆ: finals that endings add."""


def _plain_syllable(letter: str) -> str:
    code = ord(letter) - 0xAC00
    if not 0 <= code < 11172:
        return letter
    lead, rest = divmod(code, 588)
    vowel, final = divmod(rest, 28)
    return chr(0xAC00 + lead * 588 + _VOWELS.get(vowel, vowel) * 28 + (0 if final in _FINALS else final))


@lru_cache(16384)
def key(word: str) -> str:
    """What a word is compared by, whatever its ending."""
    if len(word) < 2:
        return _plain_syllable(word) if word else ""
    if word[1] == "려" and word[2:3] in ("고", "면", "는", "다"):
        return _plain_syllable(word[0])
    if word[1] in _ENDINGS or word[1] in _LIGHT:
        return _plain_syllable(word[0])
    return _plain_syllable(word[0]) + _plain_syllable(word[1])


_JI = re.compile(
    r"(?P<head>[가-힣]{1,12}?)지(?:는|도|를|가|만)?(?P<negator>않|못|마|말(?!해|씀|하|했|할|한|지|이)"
    r"|맙)?(?P<tail>[가-힣]*)"
)
_JI_ALONE = re.compile(r"(?P<head>[가-힣]{1,12})지(?:는|도|를|가|만)?")
_NEGATOR = re.compile(
    r"(?P<negator>않|못|마(?![가-힣]*음)|말(?!해|씀|하|했|할|한|지|이)|안(?=[돼되됩]|는|아|$)|맙)(?P<tail>[가-힣]*)"
)
_FUSED = re.compile(
    r"안(?P<head>되|돼|된|됨|됩|됐|될|하|해|합|했|할|한|나오|나와|나가|가|갔|갈|와|왔|올|오(?!후|전)|먹|켜|켰|꺼"
    r"|열|보이|보여|보내|봤|들|맞|읽"
    r"|받|쓰|써|걸|아프|춥|덥|추|더|뜨|떠|떴|눌|씻|감|잤|사고|좋|바뀌|지워)(?P<tail>[가-힣]*)"
)
_VAGUE = frozenset(
    ("것", "거", "때", "쪽", "곳", "사람", "데", "걸", "경우", "시간", "시간이", "식", "말", "게", "것이", "때가")
)
_OTHERS = frozenset(("다른", "다른거", "다른것", "이", "그", "타", "기타"))
_TOO_LIGHT = frozenset(("하", "되", "그", "무", "이", "마", "즈", "거", "것", "좀", "안", "수", "츠"))
"""Keys that stand for too much."""
_NOT_NEGATED = (
    "안내",
    "안전",
    "안녕",
    "안경",
    "안방",
    "안드",
    "안정",
    "안과",
    "안심",
    "안건",
    "안부",
    "안주",
    "안쪽",
    "안에",
    "안으",
    "안팎",
)
_THERE_IS = "있"
_PROGRESS = ("수", "고", "어", "아", "여", "져", "해", "돼", "수는", "수가", "수도", "필요", "필요가")
"""What 있다 is an auxiliary or an idiom after."""
_PLACES = frozenset(
    ("집", "방", "차", "실", "건물", "회사", "가게", "교실", "상자", "가방", "지갑", "이", "그", "기간", "동안")
)
_FINITE_ONLY = re.compile(
    r"(?:고|며|면|니까?|서|게|도록|지만|데|려면|려고|므로|거나|기에?|음|다면|도|라서?|아도|어도|더라도|때문에?"
    r"|느니|든지?|을때|을|ㄹ)$"
)
_ATTRIBUTE = re.compile(r"(?:는|은|던|한|된|된다는|다는|을|할|될|온|본|간|운|진|인|ㄴ)$")
_RHETORICAL = re.compile(
    r"(?:것|거|게) ?같지 ?않|좋지 ?않(?:을까|나|아|니)|(?:ㄹ|을|할|될|실|줄|볼|알|갈|올) ?수 ?없(?:을까|나|니"
    r"|어요?\?|습니까|는지|을지)"
    r"|방법(?:은|이|도)? ?없(?:을까|나|니|어|는지|습니까)|있지 ?않(?:나|을까|아|니)|(?:거|것|게) ?아니(?:야|냐"
    r"|니|에요|예요|지)|않겠(?:어|니|습)"
    r"|지 ?않을래|안 ?할래|없을까|없으려나|없(?:나|니|나요|습니까|는지)(?: ?[가-힣]*)?\?|(?:만한|방법|거|것|게"
    r"|곳|데) ?(?:은|이)? ?없(?:나|니|어\?|는지)"
)
_DOUBLE = re.compile(
    r"수 ?밖에 ?없[가-힣]*|지 ?않으면 ?(?:안 ?[되돼된됩]|큰일 ?나|혼나)[가-힣]*"
    r"|안 ?([가-힣]{0,6}면) ?(?:안 ?[되돼된됩]|큰일 ?나|혼나)[가-힣]*"
)
"""Two negations that demand: "하지 않으면 안 돼", "안 하면 큰일 나"."""
_SO_THAT_NOT = re.compile(r"지 ?않(?:도록|게|기로|기) ?(?:꼭 ?)?(?:해|하|합|주의|조심|지켜|설정|부탁|신경|$)")
_WHY_NOT = re.compile(r"(?<![가-힣])왜|이유|원인")
_ASK_NOT = re.compile(r"(?:으)?면 ?안 ?(?:되|돼|된|됩|될|됨)")
_FORBIDDING = re.compile(
    r"금지|(?<![궁조])금(?:합|하)|금물|지양|제한(?:됩|돼|된다|하고|합)|삼가|자제(?!력)|그만(?!두|큼|한)"
    r"|피하(?:세|십|도|라|자|는|기)|피해(?:라|줘|주|야)|(?:면|다간|그러면|다가) ?(?:큰일 ?나|혼나|혼난|혼날)"
    r"|관둬|관두|절대 ?안"
)
_BARE_NEGATIVE = re.compile(
    r"불가(?:능|한|합|해|$)|불능|미포함|부재|미확인|실패|거절|거부|차단|먹통|오류|에러|고장|문제|틀리|틀렸|싫"
    r"|모르|모른"
)

_TOPIC = (
    r"(?:은|는|이|가|을|를|좀|요|도| )*(?:뭐|뭔|무엇|무어|어떻|어떤|알려|말해|말씀|궁금|설명|가르|알고|있|없|[.?!]|$)"
)
_ASKS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        (
            "duration",
            r"몇 ?(?:시간|분|주|개월|달|년|초)|얼마나 ?(?:오래 ?)?걸|얼마 ?동안|소요 ?시간|며칠 ?(?:이나|동안|걸)",
        ),
        ("frequency", r"얼마나 ?자주|몇 ?번이?나? |몇 ?회|하루에 몇"),
        (
            "when",
            r"언제(?!나|든|까지나)|몇 ?시(?!간)|며칠(?! ?(?:이나|동안|걸))|몇 ?월|몇 ?일|무슨 ?요일|어느 ?날"
            r"|무슨 ?날|(?:날짜|시각|일시)" + _TOPIC,
        ),
        ("where", r"어디|어딜|어딘|어느 ?(?:곳|지역|나라|도시|동네)|(?:위치|장소)" + _TOPIC),
        ("who", r"누구|누가|누군|누굴|어떤 ?사람"),
        ("why", r"(?<![가-힣])왜(?:요|죠|지)?(?![가-힣])|어째서|(?:이유|원인|까닭)" + _TOPIC),
        ("how", r"어떻게(?! ?(?:되|돼|된|됩|됐|생|알))|어떡|어찌|(?:방법|방식|[는] ?법|절차)" + _TOPIC),
        (
            "amount",
            r"얼마(?!나 ?(?:오래|자주|걸)| ?동안)|몇(?! ?(?:시|분|주|개월|달|년|초|일|월|번|회))|(?:가격|비용"
            r"|요금|금액|액수|갯수|개수|횟수)" + _TOPIC,
        ),
    )
)
_MODALITY = (
    (
        "may",
        re.compile(
            r"[가-힣]도 ?(?:되|돼|됩|될|된|괜찮)|(?<![알줄실])(?<![알줄실] )수 ?(?:가|는|도)? ?있"
            r"|가능(?!성)"
        ),
    ),
    (
        "must",
        re.compile(r"[가-힣]야 ?(?:하|해|되|돼|됩|합|할|한|만)|필요(?:가|는|도)? ?(?:있|하|한|해|할)|필수|의무"),
    ),
)
_OPEN_QUESTION = re.compile(r"어떻게|방법|뭐|뭘|무엇|무슨|어떤|어느")
_TELL = re.compile(
    r"(?:알려|말해|말씀|가르쳐|가르켜|설명|답해|대답|궁금|알고 ?싶|찾아|검색|보여|알아봐|추천|읊어|대봐|골라"
    r"|뽑아|정해|판단|선택|불러|얘기|이야기|밝혀)[가-힣 ]{0,12}[.?!~]*$"
)
_SUGGESTION = re.compile(r"어때|어떨까|지 ?그래|좋겠|는 ?게 ?좋|것이 ?좋|권(?:합|해|장)|바람직|낫")
_LIGHT_VERB = re.compile(r"(?:주|줘|줄|둬|두|놔|놓|되|돼|될|됩|하|해|할|합|마|말|있|없)[가-힣]*|좀|꼭|더|요")
_REQUEST = re.compile(r"(?:줄래|주실래|주시겠|줄 ?수 ?있|주실 ?수 ?있|주면 ?안)")
_ORDER = re.compile(
    r"(?:줘|줘라|줘요|주세요|주셔요|주십시오|주시오|주라|주렴|라|세요|셔요|십시오|시오|자|자고|시다|도록"
    r"|바랍니다|바라|부탁(?:해|해요|합니다|드려요|드립니다)?|렴|야 ?해|야 ?돼|야 ?한다|야 ?합니다|면 ?돼)$"
)
_BARE_ORDER = re.compile(
    r"(?:켜|꺼|둬|놔|놓아|열어|닫아|틀어|올려|내려|높여|낮춰|보내|걸어|잠가|잠궈|멈춰|지워|바꿔|꺼내|넣어"
    r"|(?:예약|설정|취소|삭제|추가|전송|저장|실행|시작|종료|연결|해제|주문|결제|청소|등록|변경|재생)해)$"
)
_QUESTION = re.compile(r"(?:까|까요|나요|니|냐|나|가요|는가|은가|인가|는지|은지|인지|지요|죠|대|래|래요)$")
_DELIBERATIVE = re.compile(r"[가-힣](?:까|까요)$")

_PARTICLE = re.compile(
    r"(?P<noun>[가-힣A-Za-z0-9]{1,12}?)"
    r"(?P<particle>에게서|한테서|에서부터|에서|부터|에게|한테|께서|께|까지|으로|보다|이|가|을|를|로|에)(?:는|도|만)?"
)
_ROLES = {
    "이": "subject", "가": "subject", "께서": "subject", "을": "object", "를": "object", "에서": "from",
    "부터": "from", "에서부터": "from", "에게서": "from", "한테서": "from", "에게": "to", "한테": "to", "께": "to",
    "까지": "to", "으로": "to", "로": "to", "에": "to", "보다": "than",
}  # fmt: skip
_WORD = re.compile(r"[a-z0-9가-힣]+|[,.?!]")
_BARE_NOUN = re.compile(
    r"(?:에서|부터|까지|으로|이랑|하고|보다|에게|한테|들이|들을|은|는|이|가|을|를|에|로|와|과|랑|도|만|의)$"
)


def _noun(word: str) -> str:
    bare = _BARE_NOUN.sub("", word)
    return bare or word


def read(words: tuple[str, ...], text: str) -> Reading:
    """Read the words between spaces (Hangul, letters or digits) and , . ? ! marks, in order; ``text`` as it stood."""
    if ("면" in text or "밖에" in text) and _DOUBLE.search(text):
        text = _DOUBLE.sub("야 해", text)
        words = tuple(_WORD.findall(text))
    scan = _Scan(words, text)
    asks = frozenset(name for name, pattern in _ASKS if pattern.search(text))
    open_question = "how" in asks or _OPEN_QUESTION.search(text) is not None
    last = next((word for word in reversed(words) if word[0].isalnum()), "")
    is_question = text.rstrip().endswith("?") or _QUESTION.search(last) is not None
    modality: frozenset[str] = frozenset()
    if is_question and not asks and not open_question:
        modality = frozenset(name for name, pattern in _MODALITY if pattern.search(text))
    return Reading(
        negated=frozenset(scan.negated),
        plain=frozenset(scan.plain - scan.negated - scan.excluded),
        negation=scan.negation,
        excluded=frozenset(scan.excluded),
        asks=asks,
        modality=modality,
        act=_act(words, text, scan.forbids, asks),
        roles=_roles(words),
        verb=key(next((word for word in reversed(words) if word[0].isalnum() and not _LIGHT_VERB.fullmatch(word)), "")),
    )


class _Scan:
    """One pass over the words for what is negated and what is excluded."""

    def __init__(self, words: tuple[str, ...], text: str) -> None:
        self.negated: set[str] = set()
        self.excluded: set[str] = set()
        self.plain: set[str] = set()
        self.negation = Negation.NONE
        self.forbids = False
        self._words = words
        self._rhetorical = _RHETORICAL.search(text) is not None and not _WHY_NOT.search(text)
        for place, word in enumerate(words):
            if word[0].isalnum():
                self._word(place, word)
        if _FORBIDDING.search(text) or ("않" in text and _SO_THAT_NOT.search(text)):
            self.negation, self.forbids = Negation.STRONG, True
        elif self.negation is Negation.NONE and _BARE_NEGATIVE.search(text):
            self.negation = Negation.WEAK

    def _word(self, place: int, word: str) -> None:
        before = self._words[place - 1] if place else ""
        after = self._words[place + 1] if place + 1 < len(self._words) else ""
        if word in ("말고", "말고는") and before:
            if before.endswith("지"):
                self._deny(before[:-1], "고", place)
            else:
                self._exclude(before, self._words[place - 2] if place > 1 else "")
        elif word.endswith("말고") and len(word) > 2 and not word.endswith("지말고"):
            self._exclude(word[:-2], before)
        elif word.endswith(("보다는", "보단")):
            bare = word.removesuffix("보다는").removesuffix("보단") or before
            if not bare.endswith("기"):
                self._exclude(bare, before)
        elif before and (
            word.startswith(("빼고", "제외")) or (word.startswith("대신") and not before.endswith(("는", "은")))
        ):
            self._exclude(before)
        elif word.startswith(("아니라", "아니고", "아닌")) and before:
            self._exclude(before)
            if word.startswith("아닌"):
                self._deepen(Negation.WEAK)
        elif (
            word.startswith("아니")
            and not word.startswith(("아니면", "아니요", "아니오"))
            and before
            and not before.endswith("지")
        ):
            self._deny(_noun(before), word[2:], place)
        elif "없" in word:
            cut = word.index("없")
            subject = word[:cut] or _noun(before)
            if before.startswith("수") and len(before) < 3 and place > 1:
                subject = self._words[place - 2]
            if subject and subject != "더":
                self._deny(subject, word[cut + 1 :], place)
                if not before.startswith("수") and before not in ("필요", "필요가") and not self._rhetorical:
                    self.negated.add(_THERE_IS)
        elif not (self._ji(place, word, after) or self._not(place, word, before, after)):
            if not word.endswith("면"):
                self.plain.add(key(word))
            if word.startswith("있") and not before.endswith(_PROGRESS):
                self.plain.add(_THERE_IS)

    def _ji(self, place: int, word: str, after: str) -> bool:
        """-지 않다, -지 못하다, -지 말다."""
        match = _JI.fullmatch(word)
        if match and match["negator"]:
            head, negator, tail = match["head"], match["negator"], match["tail"]
        else:
            alone, follows = _JI_ALONE.fullmatch(word), _NEGATOR.match(after)
            if alone is None or follows is None:
                return False
            head, negator, tail = alone["head"], follows["negator"], follows["tail"]
            place += 1
        forbids = negator in "마말맙" and not tail.startswith(("고", "시고"))
        if head in ("하", "되", "시키") and place:
            noun = self._words[place - (1 if match and match["negator"] else 2)] if place > 1 else ""
            head = _noun(noun) if noun else head
        self._deny(head, "고" if negator in "마말맙" and not forbids else tail, place)
        if forbids:
            self.forbids = True
        return True

    def _not(self, place: int, word: str, before: str, after: str) -> bool:
        """안 and 못 before a verb, apart or fused; "-면 안 되다" forbids."""
        if word in ("안", "못", "않"):
            if not after or not after[0].isalnum() or (word == "안" and before in _PLACES):
                return False
            head, tail, place = after, after[1:], place + 1
        elif word.startswith("못") and len(word) > 1:
            head, tail = word[1:], word[2:]
        else:
            match = _FUSED.fullmatch(word)
            if match is None or word.startswith(_NOT_NEGATED):
                # "하면안돼" and "로그인안됨" in one word.
                cut = word.find("안")
                match = _FUSED.fullmatch(word[cut:]) if cut > 0 else None
                if match is None:
                    return False
                before = word[:cut]
            head, tail = match["head"] + match["tail"], match["tail"]
        condition = before.endswith("면") and head[0] in "되돼된될됩됐됨"
        if head[0] in "하해한할합했되돼된될됩됐됨" and before:
            head = before.removesuffix("면").removesuffix("으") if condition else _noun(before)
        self._deny(head, tail, place)
        if (
            condition
            and self.negation is Negation.STRONG
            and not tail.endswith(("까", "까요", "나", "나요", "니", "냐"))
        ):
            self.forbids = True
        return True

    def _deny(self, head: str, tail: str, place: int) -> None:
        if (
            head
            and head[0].isalnum()
            and not head.startswith(("그러", "이러", "그렇"))
            and key(head) not in _TOO_LIGHT
            and not self._rhetorical
        ):
            self.negated.add(key(head))
        follows = any(word[0].isalnum() for word in self._words[place + 1 :])
        if self._rhetorical or (follows and (_FINITE_ONLY.search(tail) or _ATTRIBUTE.search(tail))):
            self._deepen(Negation.WEAK)
        else:
            self._deepen(Negation.STRONG)

    def _exclude(self, word: str, before: str = "") -> None:
        if word in _VAGUE:
            word, before = before, ""
        if not word or not word[0].isalnum() or before in _OTHERS or word in _OTHERS:
            return
        self.excluded.add(key(_noun(word)))
        self.plain.discard(key(word))
        self._deepen(Negation.WEAK)

    def _deepen(self, negation: Negation) -> None:
        self.negation = max(self.negation, negation)


def _act(words: tuple[str, ...], text: str, forbids: bool, asks: frozenset[str]) -> Act:
    if forbids:
        return Act.FORBID
    last = next((word for word in reversed(words) if word[0].isalnum()), "")
    if _TELL.search(text) or asks or _OPEN_QUESTION.search(text):
        return Act.ASK
    if _SUGGESTION.search(text):
        return Act.NONE
    if _REQUEST.search(text) or _ORDER.search(last):
        return Act.DO
    if text.rstrip().endswith("?") or _QUESTION.search(last):
        return Act.ASK
    return Act.DO if _BARE_ORDER.search(last) else Act.NONE


def _roles(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for word in words:
        if len(word) > 1 and word[0].isalnum():
            match = _PARTICLE.fullmatch(word)
            if match is not None:
                found.append((match["noun"], _ROLES[match["particle"]]))
    return tuple(found)
