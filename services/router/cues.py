"""The words and phrases that tell what a request asks for, in English and Korean, by kind of cue.

English cues are whole words or phrases of up to three words, lower case. Korean cues are pieces of text, since
particles and endings stick to words; a piece is listed only where it rarely stands inside an unrelated word.
"""

# ruff: noqa: E501  (word lists are easier to read and to compare in long lines; Hangul counts double there)

from __future__ import annotations

ENGLISH: dict[str, str] = {
    "code": """code|coding|python|javascript|typescript|java|c++|c#|rust|golang|sql|regex|bash|html|css|react|django|pytorch|
        algorithm|function|functions|script|compiler|debugging|refactor|unit test|unit tests|api|stack trace|segfault|recursion|
        docker|kubernetes|pandas|numpy|linked list|binary tree|binary search|leetcode|backend|frontend|multithreading|
        dataframe|latex|verilog|matlab|powershell|excel formula|query|endpoint|microservice|asyncio|codebase|linux|
        tensorflow|neural network|neural networks|deep learning|machine learning|transformer|dataset|vlan|nix|jest|npm|git|nginx|
        postgres|mysql|database|schema|gui|vbs|vba|arduino|unity|aws|azure|terraform|kernel|tuple|fuzzer|compilation|llvm""",
    "code_verb": """write|implement|create|build|develop|make|give me|generate|design|complete|finish|fix|debug|optimize|
        optimise|refactor|port|convert|rewrite|review|test|explain""",
    "maths": """how many|how much|how far|how long|how old|how fast|calculate|compute|evaluate|solve|product|average|mean|
        median|probability|percent|percentage|ratio|equation|integral|derivative|matrix|vector|vectors|theorem|prime|divisible|
        remainder|integer|integers|polynomial|triangle|circle|perimeter|volume|permutations|combinations|logarithm|twice|half as|
        times as|each|remaining|altogether|total|subgroup|homomorphism|variance|eigenvalue|eigenvalues|dot product|sum""",
    "reasoning": """prove|proof|derive|deduce|infer|step by step|step-by-step|reasoning|logic|logical|logically|puzzle|riddle|
        paradox|suppose|assume|given that|if and only|therefore|hence|statement 1|statement 2|which of the|conclude|justify|
        counterexample|trade-off|trade-offs|tradeoffs|analyze|analyse|analysis|root cause|argue|critique|implications|
        consequences|contradiction|contradicts|necessarily|would happen|must be true|think carefully|diagnose|optimal|taller|
        older than|younger than|liar|truth""",
    "explain": """explain|compare|contrast|difference between|differences between|differ|pros and cons|advantages|disadvantages|
        discuss|describe|in detail|elaborate|how does|how do the|how would|principle|principles|recommend|suggest|suggestions|
        tips|ideas|strategies|what are some|impact of|effects of|role of|best practices|evaluate|how can we|ways to""",
    "number": "two|three|four|five|six|seven|eight|nine|ten|dozen|half|twice",
    "why": "why|reason|reasons|how come|should i",
    "make": """write|compose|draft|create|craft|generate|invent|develop|come up with|design|prepare|propose|outline|plan|
        brainstorm|role-play|roleplay|imagine|act as|pretend""",
    "made": """essay|story|stories|poem|song|lyrics|speech|letter|email|e-mail|blog|article|post|posts|report|plan|proposal|script|
        dialogue|review|description|descriptions|outline|paragraph|strategy|campaign|architecture|system|itinerary|curriculum|schedule|
        advertisement|ad|slogan|headline|headlines|scene|novel|limerick|haiku|memo|roadmap|diet|recipe|lesson|game|scenario|document|
        text|names|titles|questions|list|prompt|website|presentation|caption|tweet|response|summary|program""",
    "transform": """summarize|summarise|summary|translate|translation|paraphrase|rephrase|rewrite|proofread|extract|classify|
        convert|edit|shorten|simplify|correct the|improve the|tl;dr|tldr|key points|main points""",
    "format": """json|yaml|xml|csv|markdown|table|bullet points|bulleted list|numbered list|exactly|at least|no more than|
        format|schema|template|words|sentences|paragraphs""",
    "step": """first|firstly|second|secondly|third|thirdly|then|next|finally|after that|also|as well as|additionally|while|
        however|unless|except|given|must|constraint|constraints|requirement|requirements|but""",
    "expert": """plaintiff|defendant|statute|liability|contract law|tort|jurisdiction|constitutional|patient|diagnosis|symptom|
        symptoms|dosage|clinical|pathology|enzyme|protein|neuron|neurons|quantum|thermodynamics|entropy|econometrics|elasticity|
        monetary|fiscal|derivatives|hedge|metaphysics|epistemology|utilitarianism|deontology|relativity|electron|electrons|molecule|
        molecules|gene|genes|chromosome|mergers|theory|hypothesis|philosophy|philosopher|amendment|velocity|acceleration|voltage|
        isotope|equilibrium|valuation|arbitration""",
}
KOREAN: dict[str, str] = {
    "code": """코드|코딩|파이썬|자바스크립트|자바 |알고리즘|함수|스크립트|컴파일|디버깅|디버그|리팩터|리팩토|정규식|정규 표현식|쿼리|단위 테스트|유닛 테스트|
        재귀|클래스|도커|쿠버네티스|버그|백엔드|프런트엔드|프론트엔드|스택 트레이스|연결 리스트|이진 트리|이진 탐색|프로그램을|웹사이트|웹 사이트|멀티스레드|
        멀티프로세스|데이터프레임|엔드포인트|리눅스|신경망|딥러닝|머신러닝|기계 학습|데이터셋|데이터베이스|스키마""",
    "code_verb": "작성|구현|만들어|만드|짜줘|짜 줘|짜주|고쳐|수정|최적화|리팩|변환|디버|개선|리뷰|완성|설명",
    "maths": """몇 개|몇 명|몇 권|몇 원|몇 살|몇 시간|몇 분|몇 마리|몇 벌|몇 번|몇 가지|몇 퍼센트|몇 배|몇 미터|몇 킬로|몇 장|몇 송이|몇 자루|몇 그루|몇 대|몇 층|
        몇개|몇명|얼마|모두|총 |계산|구하시오|구하세요|구하라|구하여|구해라|구해보|구해줘|구해 |합을|합은|곱을|곱은|더한|뺀|나눈|평균|확률|비율|방정식|적분|미분|행렬|벡터|
        내적|외적|소수|나머지|정수|다항식|삼각형|직사각형|정사각형|넓이|부피|둘레|순열|조합|로그|두 배|세 배|절반|집합|수열|최댓값|최솟값|남은|각각|씩""",
    "reasoning": """증명|유도하|유도해|추론|단계별|단계적|논리|퍼즐|수수께끼|역설|가정하|가정할|라고 하자|라고 할 때|일 때|할 때,|했을 때|따라서|다음 중|결론|근거|정당화|
        반례|장단점|상충|분석|평가해|원인을|논증|비판|함의|모순|반드시|만약|만일|최적|진단|풀이|참인|거짓말|진실만|옳은 것|옳지 않은|왜냐|그렇다면|이때|될까|키가 크|
        나이가 많""",
    "explain": """설명|비교|차이|어떻게 작동|어떻게 동작|어떻게 생|원리|장점|단점|논하|서술|자세히|추천|제안|방법들|방법을 제시|제시해|제시하|예시를|특징|영향|역할은|
        아이디어|전략|모범 사례|조언|무엇이 있""",
    "why": "왜|이유|까닭|좋을까",
    "make": "작성|써줘|써 줘|써주|써 주|써보|써 보|써라|쓰시오|쓰세요|쓰려|지어|만들어|설계|짜줘|짜 줘|짜주|구성해|세워|창작|브레인스토밍|상상",
    "made": """에세이|소설|이야기|시를|시 한|노래|가사|연설|편지|이메일|메일|블로그|기사|글을|글 |보고서|계획|제안서|기획|대본|대화문|리뷰|소개|개요|전략|캠페인|아키텍처|시스템|
        일정|커리큘럼|광고|슬로건|문구|시나리오|로드맵|식단|레시피|자기소개서|독후감|사설|논설문|일기|전개|문서|문장|웹사이트|발표|질문을|목록""",
    "transform": "요약|번역|바꿔|고쳐 써|다듬|교정|추출|분류해|분류하|정리해|줄여|간추|맞춤법|핵심|영어로|한국어로|뽑아|정렬",
    "format": "JSON|json|표로|표 형식|마크다운|목록으로|이내|이상으로|이하로|내외|형식으로|형식에|스키마|양식|단어로|문장으로|자로 ",
    "step": """먼저|우선|첫째|둘째|셋째|다음으로|그다음|그 다음|그리고 나서|마지막으로|또한|하지만|그러나|단, |제외|조건|요구|해야 하|동시에|그런데|한 뒤|한 다음|한 후|
        바탕으로|활용하여|활용해""",
    "expert": """원고|피고|법령|판례|불법행위|관할|헌법|환자|증상|투약|용량|임상|병리|효소|단백질|뉴런|양자|열역학|엔트로피|탄력성|통화 정책|재정 정책|파생상품|형이상학|인식론|
        공리주의|상대성|전자기|분자|유전자|염색체|인수합병|이론|가설|철학|가속도|전압|동위원소|평형|속력|비음화|음운""",
}


def _split(listed: str) -> tuple[str, ...]:
    # Line breaks of the lists above are no part of a cue; a blank before the bar is ("총 |").
    return tuple(cue for cue in (part.lstrip().removesuffix("\n") for part in listed.split("|")) if cue)


def english_index() -> dict[str, tuple[str, ...]]:
    """Kinds by English cue."""
    index: dict[str, tuple[str, ...]] = {}
    for kind, listed in ENGLISH.items():
        for cue in _split(listed):
            index[cue] = (*index.get(cue, ()), kind)
    return index


def korean_pieces() -> tuple[tuple[str, str], ...]:
    """Korean cues with their kinds."""
    return tuple((cue, kind) for kind, listed in KOREAN.items() for cue in _split(listed))
