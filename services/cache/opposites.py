"""Words and their opposites, English and Korean, for the antonym guard. Pure data, and how it is matched.

One pair of groups a line. English words match whole, with common endings; Korean stems match where a word begins.
A space at the end of a Korean stem is written as an underscore.
"""

from __future__ import annotations

import re

_PAIRS = """
on / off
enable|activat / disable|deactivat
open / close|clos|shut
start|begin / stop|end|finish
increase|increas|raise|rais|higher|more / decrease|decreas|reduc|reduce|lower|less|fewer
add|insert / remov|remove|delet|delete
install / uninstall
lock / unlock
subscrib|subscribe / unsubscrib|unsubscribe|cancel
buy|buying|purchas|purchase / sell|selling|sold
import / export
upload / download
send / receiv|receive|get
before / after
above|over / below|under
max|maximum|most|highest|largest / min|minimum|least|lowest|smallest
hot|warm / cold|cool
up / down
in / out
first / last
left / right
old|older / new|newer
always / never
allow|permit / block|deny|forbid|prevent
accept|approv|approve / reject|refus|refuse|declin|decline
connect / disconnect
encrypt|encod|encode / decrypt|decod|decode
push / pull
lend / borrow
win|won / lose|lost
public / private
arriv|arrive|arrival / depart|departure|leav|leave
mut|mute / unmut|unmute
love|like / hate|dislike
advantage|benefit|pro / disadvantage|drawback|con
true / false
refund / pay|payment|charge
withdraw|withdrawal / deposit|top
good|best|better / bad|worst|worse
켜|켤|켠|켰|킬|키는|틀어|틀 / 꺼|끄|끌|끈|껐
열어|열|연다|여는 / 닫
시작 / 종료|끝|중지|멈추|중단
올려|올리|높여|높이|높은|늘려|늘리|증가|인상|상승 / 내려|내리|낮춰|낮추|낮은|줄여|줄이|감소|인하|하락
추가|넣 / 삭제|제거|빼|지우|지워
설치 / 제거|삭제
잠금|잠그|잠가 / 해제|풀
가입|구독 / 탈퇴|해지|취소
사는|사려|사고|살_|구매|구입|매수 / 파는|팔|판매|매도
보내|송금|발신|전송 / 받|수신
입금|충전 / 출금|인출
로그인 / 로그아웃
이전|전에 / 이후|후에|다음
최대|가장 많|가장 큰|가장 높|제일 많|제일 큰|제일 높 / 최소|가장 적|가장 작|가장 낮|제일 적|제일 작|제일 낮
더운|뜨거|따뜻 / 추운|차가|시원
밝 / 어두|어둡
빠른|빨리|빠르 / 느린|천천히|느리
허용|승인|수락 / 차단|거부|거절
연결 / 해제|끊
활성 / 비활성
많 / 적은|적게|적어
장점 / 단점
싼|저렴|싸 / 비싼|비싸
출발 / 도착
왼 / 오른
위로|위쪽 / 아래
있는|있어|있나|있을 / 없
좋 / 나쁜|싫
맞 / 틀린|틀렸
결제 / 환불
업로드 / 다운로드
처음|첫 / 마지막
실내 / 실외|야외
국내 / 해외|국외
무료 / 유료
음소거 / 소리
크게|큰|커 / 작게|작은|작아
길|긴 / 짧
"""


_ENDINGS = ("", "e", "s", "es", "d", "ed", "ing", "ion", "ly")
_LINES = tuple(line.split(" / ") for line in _PAIRS.strip().splitlines())
_WORD = re.compile(r"\w+")
_HANGUL = re.compile("[가-힣]")


def _forms() -> dict[str, tuple[tuple[int, int], ...]]:
    forms: dict[str, tuple[tuple[int, int], ...]] = {}
    for pair, groups in enumerate(_LINES):
        for side, group in enumerate(groups):
            for form in {word + ending for word in group.split("|") if word.isascii() for ending in _ENDINGS}:
                forms[form] = (*forms.get(form, ()), (pair, side))
    return forms


def _stems(group: str) -> re.Pattern[str] | None:
    stems = [word.replace("_", " ") for word in group.split("|") if not word.isascii()]
    return re.compile("|".join(rf"(?<![가-힣]){stem}" for stem in stems)) if stems else None


_FORMS = _forms()
_STEMS = tuple(
    (pair, side, pattern)
    for pair, groups in enumerate(_LINES)
    for side, group in enumerate(groups)
    if (pattern := _stems(group)) is not None
)


def sides(text: str) -> dict[int, dict[int, str]]:
    """The pairs that a text has words of: by pair and side (0, 1) the first such word.

    English words are looked up and Korean stems searched for only where there is Hangul: searching for every pair in
    every text took more CPU than the rest of a lookup.
    """
    found: dict[int, dict[int, str]] = {}
    for word in _WORD.findall(text.lower()):
        for pair, side in _FORMS.get(word, ()):
            found.setdefault(pair, {}).setdefault(side, word)
    if _HANGUL.search(text):
        for pair, side, pattern in _STEMS:
            match = pattern.search(text)
            if match is not None:
                found.setdefault(pair, {}).setdefault(side, match.group().strip())
    return found
