"""Things of one kind that exclude each other: cities, countries, firms, appliances, colours. Pure data.

"Is it raining in Seoul" and "... in Busan" differ by one word that every embedder calls similar. One kind a line; its
members are separated by commas, other names of a member by bars. Two questions that name different members of a kind
are different questions. Korean names match where a word begins; a name that other words begin with is marked ``=``
and matches only alone or with a particle behind it. A space within a name is written ``_``; lines go on indented.
"""

from __future__ import annotations

_KINDS = """
city: seoul|서울, busan|부산, incheon|인천, daegu|대구, daejeon|대전, gwangju|광주, ulsan|울산, sejong|세종시,
  jeju|제주, suwon|수원, gangneung|강릉, gyeongju|경주, jeonju|전주, pohang|포항, tokyo|도쿄|동경, osaka|오사카,
  kyoto|교토, beijing|베이징|북경, shanghai|상하이|상해, hong_kong|홍콩, taipei|타이베이, bangkok|방콕, hanoi|하노이,
  danang|다낭, manila|마닐라, jakarta|자카르타, delhi|델리, mumbai|뭄바이, bangalore, hyderabad, chennai,
  dubai|두바이, istanbul|이스탄불, moscow|모스크바, berlin|베를린, munich|뮌헨, hamburg, vienna|빈=, paris|파리=,
  london|런던, manchester|맨체스터, liverpool|리버풀, dublin|더블린, edinburgh|에든버러, rome|로마, milan|밀라노,
  madrid|마드리드, barcelona|바르셀로나, lisbon|리스본, amsterdam|암스테르담, brussels|브뤼셀, zurich|취리히,
  geneva|제네바, prague|프라하, budapest|부다페스트, warsaw|바르샤바, athens|아테네, stockholm|스톡홀름, oslo|오슬로,
  copenhagen|코펜하겐, helsinki|헬싱키, cairo|카이로, nairobi, lagos, sydney|시드니, melbourne|멜버른,
  brisbane|브리즈번, auckland|오클랜드, new_york|nyc|뉴욕, los_angeles|la=|로스앤젤레스, chicago|시카고,
  boston|보스턴, houston|휴스턴, dallas|댈러스, austin, seattle|시애틀, denver|덴버, miami|마이애미, atlanta|애틀랜타,
  philadelphia, phoenix, detroit, las_vegas|라스베이거스|라스베가스, san_francisco|샌프란시스코, san_diego,
  toronto|토론토, vancouver|밴쿠버, montreal|몬트리올, mexico_city, sao_paulo|상파울루
country: korea|south_korea|한국|대한민국|우리나라, north_korea|북한, japan|일본, china|중국, taiwan|대만,
  vietnam|베트남, thailand|태국, philippines|필리핀, indonesia|인도네시아, malaysia|말레이시아,
  singapore|싱가포르|싱가폴, india|인도=, pakistan|파키스탄, bangladesh, nepal|네팔, mongolia|몽골, russia|러시아,
  ukraine|우크라이나, turkey|튀르키예|터키, israel|이스라엘, iran|이란=, iraq|이라크, saudi_arabia|사우디,
  egypt|이집트, morocco|모로코, nigeria|나이지리아, kenya|케냐, south_africa|남아공, uk|united_kingdom|britain|영국,
  england|잉글랜드, scotland|스코틀랜드, ireland|아일랜드, france|프랑스, germany|독일, austria|오스트리아,
  switzerland|스위스, italy|이탈리아, spain|스페인, portugal|포르투갈, netherlands|holland|네덜란드, belgium|벨기에,
  denmark|덴마크, sweden|스웨덴, norway|노르웨이, finland|핀란드, poland|폴란드, czechia|체코, hungary|헝가리,
  greece|그리스=, romania, usa|united_states|america|미국, canada|캐나다, mexico|멕시코, brazil|브라질,
  argentina|아르헨티나, chile|칠레, peru|페루, cuba|쿠바, australia|호주, new_zealand|뉴질랜드
language: english|영어, korean|한국어, japanese|일본어, chinese|mandarin|중국어, spanish|스페인어,
  french|프랑스어|불어, german|독일어, italian|이탈리아어, russian|러시아어, portuguese|포르투갈어, arabic|아랍어,
  hindi|힌디어, vietnamese|베트남어, thai|태국어
firm: apple|애플, google|구글, microsoft|마이크로소프트, amazon|아마존, samsung|삼성, lg|엘지, hyundai|현대차,
  kia|기아차, naver|네이버, kakao|카카오=|다음카카오, coupang|쿠팡, tesla|테슬라, nvidia|엔비디아, intel|인텔, amd,
  ibm, oracle, toyota|도요타|토요타, honda|혼다, bmw, benz|mercedes|벤츠, audi|아우디, sony|소니, xiaomi|샤오미,
  huawei|화웨이, skt, kt=, uber|우버, lyft, airbnb|에어비앤비, paypal|페이팔, starbucks|스타벅스
cloud: aws|amazon_web_services, gcp|google_cloud, azure|애저
service: netflix|넷플릭스, facebook|페이스북|페북, gmail|지메일, hanmail|한메일, outlook|아웃룩,
  instagram|인스타|인스타그램, whatsapp|왓츠앱, kakaotalk|카톡|카카오톡, telegram|텔레그램, youtube|유튜브,
  twitter|트위터, tiktok|틱톡, linkedin|링크드인, slack|슬랙, zoom|줌=, discord|디스코드, spotify|스포티파이,
  melon|멜론, quora, reddit, snapchat
system: ios|아이오에스, android|안드로이드, windows|윈도우|윈도, macos|mac|맥북, linux|리눅스, ubuntu|우분투
device: iphone|아이폰, ipad|아이패드, galaxy|갤럭시, laptop|노트북, desktop|데스크탑|데스크톱, tablet|태블릿,
  smartwatch|스마트워치, printer|프린터, smartphone|스마트폰|핸드폰|휴대폰|휴대전화, keyboard|키보드, router|공유기,
  playstation|플레이스테이션, xbox|엑스박스
browser: chrome|크롬, firefox|파이어폭스, safari|사파리, edge=|엣지
programming: python|파이썬, java=|자바=, javascript|자바스크립트, typescript|타입스크립트, golang, rust|러스트, c++,
  c#, kotlin|코틀린, swift|스위프트, php, ruby|루비=, matlab
database: mysql, postgres|postgresql, sqlite, mongodb|몽고디비, redis|레디스, mariadb
framework: react|리액트, angular|앵귤러, django|장고, flask, spring|스프링, laravel
app: excel|엑셀, powerpoint|ppt|파워포인트, photoshop|포토샵, illustrator|일러스트레이터
appliance: washing_machine|washer|세탁기, dryer|건조기, dishwasher|식기세척기, fridge|refrigerator|냉장고, oven|오븐,
  microwave|전자레인지, air_conditioner|aircon|에어컨, fan=|선풍기, heater|히터|난로, boiler|보일러,
  humidifier|가습기, dehumidifier|제습기, air_purifier|공기청정기, vacuum|청소기, tv|television|텔레비전|티비,
  radio|라디오, speaker|스피커, lamp|램프|스탠드, toaster|토스터, kettle|전기포트, rice_cooker|밥솥, iron=|다리미,
  stove|가스레인지|가스렌지|인덕션
part: door|현관문|방문=, window|창문, curtain|커튼, gate, garage
room: kitchen|부엌|주방, bedroom|침실|안방, bathroom|화장실|욕실, living_room|거실, balcony|베란다|발코니,
  basement|지하실, attic|다락
colour: red|빨간|빨강, blue|파란|파랑, green|초록|녹색, yellow|노란|노랑, black|검은|검정, white|하얀|하양|흰,
  purple|보라색, pink|분홍|핑크, orange=|주황, gray|grey|회색, brown|갈색
drink: coffee|커피, tea|홍차|녹차, milk|우유, juice|주스|쥬스, beer|맥주, wine|와인, soju|소주, cola|coke|콜라,
  cider|사이다
meat: beef|소고기|쇠고기, pork|돼지고기, chicken|닭고기|치킨, lamb|양고기, fish=|생선
fruit: apple_juice, banana|바나나, strawberry|딸기, grape|포도, watermelon|수박, peach|복숭아, pear|배=
animal: dog|강아지, cat|고양이, rabbit|토끼, hamster|햄스터, horse, cow, pig=
vehicle: car|자동차|승용차, bus|버스, train|기차|열차, subway|지하철, plane|flight|비행기, taxi|택시,
  bicycle|bike|자전거, motorcycle|오토바이, ship=|ferry|배편, ktx, srt
card: visa=, mastercard|마스터카드, amex|american_express
card_kind: debit|체크카드, credit_card|신용카드, virtual|가상, gift_card|기프트카드, prepaid|선불
currency: dollar|dollars|usd|달러, euro|euros|eur|유로, yen|jpy|엔화, won=|krw|원화, gbp|sterling, yuan|rmb|위안,
  rupee|rupees|inr, franc, bitcoin|btc|비트코인, ethereum|eth|이더리움
account: savings|적금, checking|입출금
document: passport|여권, driver's_license|driving_licence|운전면허|면허증, id_card|identity_card|주민등록증|신분증,
  birth_certificate|출생증명서, visa_application|비자
identity: password|비밀번호|비번|패스워드, username|아이디|사용자명, pin|핀번호, email_address|이메일,
  phone_number|전화번호, nickname|닉네임|별명
sport: soccer|축구, baseball|야구, basketball|농구, volleyball|배구, tennis|테니스, golf|골프, cricket, hockey|하키,
  swimming|수영, badminton|배드민턴, ping_pong|탁구, rugby, boxing|권투|복싱, ski|skiing|스키
instrument: piano|피아노, guitar|기타를|기타는, violin|바이올린, drum|drums|드럼, flute|플루트, cello|첼로, trumpet
school: kindergarten|유치원, elementary_school|초등학교, middle_school|중학교, high_school|고등학교,
  university|college|대학교, graduate_school|대학원
subject: math|maths|mathematics|수학, physics|물리, chemistry|화학, biology|생물, history|역사, geography|지리
shop: bank|은행, hospital|병원, pharmacy|약국, library|도서관, museum|박물관, airport|공항, station=|기차역,
  restaurant|식당|레스토랑, cafe|카페, hotel|호텔, cinema|영화관, mart|마트, convenience_store|편의점,
  post_office|우체국, school_cafeteria|학식, gym|헬스장, hairdresser|미용실
illness: flu|독감, covid|코로나, diabetes|당뇨, cancer, asthma|천식, measles|홍역, hepatitis|간염
weather: rain|raining|비가|비는|비도|비올, snow|snowing|눈이_오|눈이_내|폭설, fog|안개, wind|바람이|바람은,
  typhoon|태풍, fine_dust|미세먼지, humidity|습도, temperature|기온|온도, thunderstorm|천둥, yellow_dust|황사
season: spring_season|봄=|봄에|봄철, summer|여름, autumn|가을, winter|겨울
weekday: monday|월요일, tuesday|화요일, wednesday|수요일, thursday|목요일, friday|금요일, saturday|토요일,
  sunday|일요일
month: january|1월, february|2월, march=|3월, april|4월, june|6월, july|7월, august|8월, september|9월, october|10월,
  november|11월, december|12월
part_of_day: dawn|새벽, morning|아침|오전, noon|점심|정오, afternoon|오후, evening|저녁, night|밤에|밤=|야간,
  midnight|자정
week_part: weekend|주말, weekday|평일|주중
day: today|오늘, tomorrow|내일, yesterday|어제, the_day_after_tomorrow|모레|내일모레,
  the_day_before_yesterday|그제|그저께
year: this_year|올해|금년|이번_년도|이번_연도, last_year|작년|지난해, next_year|내년
week: this_week|이번_주|이번주|금주, last_week|지난주|지난_주, next_week|다음주|다음_주
calendar: this_month|이번_달|이번달, last_month|지난달|지난_달, next_month|다음달|다음_달
holiday: christmas|크리스마스|성탄절, thanksgiving|추수감사절, halloween|핼러윈, chuseok|추석,
  lunar_new_year|설날|구정, easter|부활절, new_year's_day|신정, valentine's|발렌타인
frequency: daily|매일, weekly|매주, monthly|매달|매월, yearly|annually|매년
direction: north|northern|북쪽, south|southern|남쪽, east|eastern|동쪽, west|western|서쪽
planet: mercury, venus|금성, mars|화성, jupiter|목성, saturn|토성, neptune|해왕성, uranus|천왕성, moon
size: small_size|소형, medium_size|중형, large_size|대형
gender: male|men|남자|남성, female|women|여자|여성
mailbox: inbox|받은_메일함|받은메일함|받은_편지함|받은편지함, sent_mail|보낸_메일함|보낸메일함|보낸_편지함|보낸편지함,
  spam_folder|스팸_메일함|스팸메일함
axis: horizontal|가로, vertical|세로
"""


def _index() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
    """Names to (kind, member): those that match whole words, and Korean ones that match where a word begins."""
    whole: dict[str, tuple[str, str]] = {}
    beginnings: dict[str, tuple[str, str]] = {}
    for line in _KINDS.replace(",\n  ", ", ").strip().splitlines():
        kind, _, members = line.partition(": ")
        for member in members.split(", "):
            names = member.split("|")
            for name in names:
                bare = name.removesuffix("=")
                # ASCII names match whole anyway: their mark says that they are ambiguous, which rules ask for.
                target = whole if bare.isascii() or name != bare else beginnings
                target[bare.replace("_", " ")] = (kind, names[0].removesuffix("="))
    return whole, beginnings


WHOLE, BEGINNINGS = _index()
LONGEST_BEGINNING = max(len(name) for name in BEGINNINGS)
TIMES = frozenset(
    ("weekday", "month", "part_of_day", "week_part", "day", "year", "week", "calendar", "season", "holiday")
)
"""The kinds that the dates guard compares; all others are the names guard's."""
