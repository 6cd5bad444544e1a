"""Words and their opposites, English and Korean, for the antonym guard. Pure data, and how it is matched.

One pair of groups a line. English words match whole, with common endings; Korean beginnings match where a word
begins, the longest first; one with ``=`` behind it matches a whole word; ``_`` alone is a word that is no opposite
although a shorter beginning would call it one.
"""

from __future__ import annotations

_PAIRS = """
on / off
enable|enabl|activat|activate|turn_on / disable|disabl|deactivat|deactivate|turn_off
open / close|clos|shut
start|begin|starting|beginning|beginn / stop|end|finish|stopp
increase|increas|raise|rais|higher|more|bigger|larger|increment / decrease|decreas|reduc|reduce|lower|less|fewer|smaller
add|insert|addition / remov|remove|delet|delete
install / uninstall
lock / unlock
block / unblock
freez|freeze / unfreez|unfreeze
link / unlink
follow / unfollow
archiv|archive / unarchiv|unarchive
subscrib|subscribe / unsubscrib|unsubscribe|cancel
buy|buying|purchas|purchase / sell|selling|sold
import / export
upload / download
before / after
above|over / below|under
max|maximum|most|highest|largest|biggest|longest / min|minimum|least|lowest|smallest|shortest
hot|warm|heat / cold|cool
up / down
in / out
first|beginning / last|final
left / right
older|oldest / newer|newest|latest
always / never
allow|permit / deny|forbid|prevent|block
accept|approv|approve / reject|refus|refuse|declin|decline
connect|pair / disconnect|unpair
encrypt|encod|encode / decrypt|decod|decode
push / pull
lend / borrow
win|won / lose|lost|losing
public / private
arriv|arrive|arrival / depart|departure|leav|leave
mut|mute / unmut|unmute
love|like / hate|dislike
advantage|benefit|pro / disadvantage|drawback|con
true / false
refund / charge
withdraw|withdrawal|withdrew / deposit|topup
best|better / worst|worse
gain / lose
rich / poor
tall|taller / short|shorter
young|younger / old|older
inside|indoor|indoors / outside|outdoor|outdoors
legal / illegal
possible / impossible
safe / dangerous|unsafe
healthy / unhealthy
easy|easily|easier|easiest / hard|difficult|harder|hardest
cheap|cheaper|cheapest / expensiv|expensive
fast|faster|fastest|quick / slow|slower|slowest|slowly
early|earlier|earliest / late|later|latest
incoming|inbound / outgoing|outbound
input / output
ascend / descend
vertical / horizontal
forward / backward
expand / collapse
show|unhide / hide
zoom_in / zoom_out
pass / fail
employer / employee
buyer / seller
landlord / tenant
lender / borrower
at_least / at_most
with / without
켜|켤|켠|켰|킬|키는|키지|켭|틀어|틀지|틀까|틀면 / 꺼|끄|끌|끈|껐|끕
열어|열까|열려|열린|열고|열면|열지|열었|열리|엽|연다|여는 / 닫
시작|개시|착수 / 종료|끝|중지|멈추|멈춰|중단|마감|그만두
올려|올리|높여|높이|높은|늘려|늘리|증가|인상|상승|키워|키우 / 내려|내리|낮춰|낮추|낮은|줄여|줄이|감소|인하|하락
추가|넣어|넣는|넣고|넣지|넣을 / 삭제|제거|빼줘|빼는|빼고|빼려|빼지|지우|지워
설치 / 제거|삭제
잠금|잠그|잠가|잠궈 / 해제|풀어|풀려면|풀고|푸는
가입 / 탈퇴|해지
신청|등록 / 해지|취소|탈퇴|철회
예약 / 취소
사는=|사려|사고=|사려면|사고싶|살까|사도|사야|구매|구입|매수 / 파는=|팔려|팔고|팔까|팔아|팔아도|팔면|판매|매도
송금|발신 / 수신
입금 / 출금|인출
로그인 / 로그아웃
이전에|이전의|전에=|전까지|직전|앞서 / 이후|후에=|다음에|나중에|직후
먼저|우선 / 나중에
최대|가장 많|가장 크|가장 큰|가장 높|가장 긴|가장 빠|최고|최장 / 최소|가장 적|가장 작|가장 낮|가장 짧|가장 느|최저|최단
이상=|이상인|이상이|이상을|이상의|초과 / 이하|미만
더운|더울|덥|뜨거|뜨겁|따뜻|온수|난방 / 추운|추울|춥|차가|차갑|시원|냉수|냉방|찬물
밝 / 어두|어둡
빠른|빨리|빠르|빨라 / 느린|천천히|느리|느려|늦게
허용|승인|수락 / 차단|거부|거절
연결 / 해제|끊
활성|켜짐 / 비활성|꺼짐
많은|많이|많아|많을|많은지 / 적은|적게|적어|적을|조금만
장점 / 단점
싼=|싸게|저렴|싸= / 비싼|비싸|비쌀
출발 / 도착
왼 / 오른
위로|위쪽|위층|위에= / 아래
좋은|좋아|좋을 / 나쁜|나쁠|나빠|싫어|싫은
맞는|맞나|맞아|맞지|맞아요 / 틀린|틀렸|틀리
업로드 / 다운로드
처음|첫=|첫번째|최초 / 마지막|최후
실내 / 실외|야외
국내 / 해외|국외
무료|공짜 / 유료
음소거 / 소리
크게|큰=|커=|커요|크지|클까|큰지|크고 / 작게|작은|작아|작을
길게|길어|긴=|길이가 / 짧
찬성 / 반대
합격 / 불합격|탈락
성공 / 실패
공개 / 비공개
가능 / 불가능|불가
입구 / 출구
동의 / 거부|철회
이기|이긴|이겼 / 지는=|진=|졌|패배
늘어|늘었|늘면 / 줄어|줄었|줄면
두꺼|두껍 / 얇
무거|무겁 / 가벼|가볍
쉬운|쉽게|쉬워 / 어려|어렵
안전 / 위험
빌려주|빌려줄|빌려준 / 빌리는|빌려=|빌릴
가져가|가져갈 / 가져오|가져올|가져와
들어가 / 나가
오르|올랐|오를 / 내리|내렸|내릴|떨어
강하|강한|세게 / 약하|약한|약하게
"""


_ENDINGS = ("", "e", "s", "es", "d", "ed", "ing", "ion", "ly")
_DIRECTED = frozenset(
    (
        "log",
        "logs",
        "logged",
        "sign",
        "signs",
        "signed",
        "check",
        "checked",
        "opt",
        "clock",
        "zoom",
        "cash",
        "move",
        "way",
        "go",
        "come",
        "coming",
        "going",
        "get",
        "logging",
        "signing",
    )
)
"""What "in" and "out", "up" and "down" are opposites after: elsewhere they are mere prepositions."""
_MOST = frozenset(("가장", "제일"))
_LINES = tuple(line.split(" / ") for line in _PAIRS.strip().splitlines())

Sides = tuple[tuple[int, int, str], ...]
"""(pair, side 0 or 1, the word that stands for it), one of a pair and side."""


def _index() -> tuple[dict[str, tuple[tuple[int, int], ...]], dict[str, tuple[tuple[int, int], ...]]]:
    """English forms, and Korean beginnings of words, to the pairs and sides that they stand for."""
    forms: dict[str, tuple[tuple[int, int], ...]] = {}
    beginnings: dict[str, tuple[tuple[int, int], ...]] = {}
    for pair, groups in enumerate(_LINES):
        for side, group in enumerate(groups):
            for word in group.split("|"):
                if word.isascii():
                    for form in {word + ending for ending in _ENDINGS}:
                        forms[form] = (*forms.get(form, ()), (pair, side))
                else:
                    beginnings[word] = (*beginnings.get(word, ()), (pair, side))
    return forms, beginnings


_FORMS, _BEGINNINGS = _index()
_LONGEST = max(len(beginning) for beginning in _BEGINNINGS)


def sides(words: tuple[str, ...]) -> Sides:
    """The opposites that lower-case words are among.

    Beginnings are looked up in a table, longest first: searching for every pair in every text took more CPU than the
    rest of a lookup.
    """
    found: dict[tuple[int, int], str] = {}
    before = ""
    for word in words:
        if word[0].isascii():
            for place in _FORMS.get(word, ()):
                if word not in ("in", "out", "up", "down") or before in _DIRECTED:
                    found.setdefault(place, word)
        else:
            whole = f"{word}="
            places = _BEGINNINGS.get(whole)
            if places is None:
                for length in range(min(len(word), _LONGEST), 0, -1):
                    places = _BEGINNINGS.get(word[:length])
                    if places is not None:
                        break
            for place in places or ():
                found.setdefault(place, word)
            if before in _MOST:
                for length in range(min(len(word), _LONGEST), 0, -1):
                    for place in _BEGINNINGS.get(f"가장 {word[:length]}", ()):
                        found.setdefault(place, f"{before} {word}")
        before = word
    return tuple((pair, side, word) for (pair, side), word in found.items())


def opposed(one: Sides, other: Sides) -> tuple[str, str] | None:
    """A word of one text and its opposite in the other, where neither text has both; None when there is none."""
    for pair, side, word in one:
        if any(p == pair and s != side for p, s, _ in one) or any(p == pair and s == side for p, s, _ in other):
            continue
        for p, s, opposite in other:
            if p == pair and s != side:
                return word, opposite
    return None
