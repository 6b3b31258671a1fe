"""What of a description may stand in a caption: never the person, always what varies from photo to photo.

What a caption names, the model does not blame on the trigger word. So age, face, eyes, skin, hair, build, beauty and
origin must not be named: they are what the trigger word has to take up. Clothes, light, background, expression and
framing are named, because they shall change from picture to picture.

The description is taken apart into small clauses. One about the face or the hair goes; of others only the word does.
"""

from __future__ import annotations

import re

MOST_WORDS = 45  # text encoders of 77 tokens still read all of it


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: A clause with one of these is about who it is, and goes as a whole.
OF_THE_PERSON = _words(
    """
    face faces facial forehead chin jaw jawline cheek cheeks cheekbone cheekbones nose nostrils lips lip mouth teeth
    tooth eye eyes eyed eyebrow eyebrows eyelash eyelashes eyelid eyelids ear ears brow brows dimple dimples
    features gaze stare skin complexion freckle freckles freckled mole moles wrinkle wrinkles wrinkled scar scars
    blemish blemishes birthmark tanned tattoo tattoos tattooed acne pimple pimples hair haired hairs hairstyle
    haircut hairline bald balding blonde blond brunette redhead ponytail braid braids braided curl curls curly
    fringe bangs dreadlocks afro beard bearded moustache mustache stubble goatee sideburns shaven age aged ages year
    years twenties thirties forties fifties sixties seventies eighties ethnicity ethnic race descent heritage
    nationality man men woman women boy boys girl girls guy guys lady ladies gentleman gentlemen male female person
    people adult adults child children kid kids baby babies toddler toddlers teen teens teenager teenagers
    individual human bride groom mother father daughter son wife husband grandmother grandfather build physique
    figure height weight
    """
)
#: Of these the word alone goes: they may as well be said of a building or a shirt.
OF_LOOKS = _words(
    """
    young younger old older elderly middle-aged teenage youthful senior mature adolescent childlike beautiful pretty
    handsome attractive gorgeous cute ugly lovely good-looking stunning sexy charming striking slim fat thin chubby
    overweight muscular skinny plump petite athletic stocky slender lean tall asian african caucasian hispanic
    latino latina european indian arab arabic chinese japanese korean american african-american middle-eastern
    eastern western nordic slavic mediterranean scandinavian fair-skinned dark-skinned light-skinned olive-skinned
    """
)
_NOUNS = r"(?:image|photo|photograph|picture|portrait|headshot|shot|selfie)"
_SOMEBODY = r"(?:man|woman|boy|girl|person|lady|guy|child|individual)"
#: What a description begins with and a caption has no use for, in the order in which it goes.
_EMPTY_WORDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"^in (?:this|the) {_NOUNS},? ?(?:we can see |there is |you can see )?",
        rf"^(?:the|this) {_NOUNS} (?:is|shows|depicts|features|captures|appears to be|seems to be) ",
        r"^(?:there is|we can see|it is|it's) ",
        r"^(?:an? )?(?:black[- ]and[- ]white )?(?:color |colour )?(?:photo|photograph|picture|image|portrait|headshot)"
        r"(?: portrait)?(?: of)?$",
        rf" (?:of|in) the {_NOUNS}\b",
        rf"^(?:[\w-]+ ){{0,8}}{_SOMEBODY} (?=(?:in|on|at|by) )",
        rf"^(?:the |an? )?(?:{_SOMEBODY}|subject|he|she|they)(?:'s)? "
        r"(?:is|are|has|have|wears|wore|seems|appears|looks to be)(?: to be)? ",
        r"^(?:he|she|they|who) ",
        r"^(?:is|are|has|have|and|while|with|also) (?:is |are |has |have )?",
        r" (?:on|across|over) (?:his|her|their|the) faces?\b",
        rf"(?<=close-up)(?: {_NOUNS})? of (?:the|an?|his|her|their)\b.*$",
        rf"(?<=close-up) {_NOUNS}\b",
        r"\s+(?:him|her|them|himself|herself|themselves)$",
    )
)
#: Before it is taken apart: doubt and words that mean something else here.
_PLAINER = (
    (re.compile(r"\b(?:appears?|seems?) to (?:be|have been)\b", re.IGNORECASE), "is"),
    (re.compile(r"\bblack[- ]and[- ]white\b", re.IGNORECASE), "monochrome"),
    (re.compile(r"\b(background|room|wall|scene|setting|interior|photo|image) features\b", re.IGNORECASE), r"\1 has"),
)
#: “in her 30s”, “mid-20s”; not the fashion of the 1950s.
_DECADE = re.compile(r"(?<!\d)\d0'?s\b")
_WHOSE = re.compile(r"\b(?:his|her|their|its)\s+", re.IGNORECASE)
#: Where a sentence is taken apart: the words before these belong together, and so do those after.
_BOUNDARY = re.compile(
    r"[,;:.!?()]+|\s+(?=(?:and|while|who|whose|with|wearing|dressed|standing|sitting|seated|looking|smiling|facing|holding|"
    r"posing|leaning|in front of|against|taken|lit)\b)",
    re.IGNORECASE,
)
_AND = re.compile(r"^and\s+", re.IGNORECASE)
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*", re.IGNORECASE)
_LOOKS = re.compile(
    r"\b(?:an?\s+)?(?:(?:very|quite|rather)\s+)?(?:" + "|".join(sorted(map(re.escape, OF_LOOKS), key=len, reverse=True))
    + r")\b(?![-'])\s*", re.IGNORECASE,
)  # fmt: skip
#: A clause of one of these alone says nothing.
_LEFTOVERS = _words(
    """
    a an the is are was be been of in on at to and or with as it this that there who which while has have he she
    they him them his her their very also some other front view close appears seems looks look looking standing
    sitting posing image photo photograph picture portrait headshot shot selfie taken shows
    """
)


def allowed_words(description: str) -> str:
    """The description without a word about the person, as clauses with commas between them; "" where none is left.

    No word of ``OF_THE_PERSON`` and ``OF_LOOKS`` is in it, and at most ``MOST_WORDS`` words are.
    """
    clauses: list[str] = []
    for pattern, plainer in _PLAINER:
        description = pattern.sub(plainer, description)
    for raw in _BOUNDARY.split(description):
        clause = _small(_without_looks(_plain(raw)))
        if _says_something(clause) and clause not in clauses:
            clauses.append(clause)
    kept: list[str] = []
    for clause in clauses:
        if len(" ".join([*kept, clause]).split()) > MOST_WORDS:
            break
        kept.append(clause)
    return ", ".join(kept)


def names_the_person(text: str) -> bool:
    """Whether any word of ``text`` is one that no caption may have."""
    words = (part for word in _WORD.findall(text) for part in _parts(word))
    return bool(_DECADE.search(text)) or any(word in OF_THE_PERSON or word in OF_LOOKS for word in words)


def _parts(word: str) -> tuple[str, ...]:
    """A word, and the parts of a word with hyphens: “long-haired” is about hair."""
    lower = word.lower()
    return (lower, *lower.split("-")) if "-" in lower else (lower,)


def _plain(clause: str) -> str:
    clause = _AND.sub("", " ".join(clause.split()))
    for pattern in _EMPTY_WORDS:
        clause = pattern.sub("", clause).strip()
    return _WHOSE.sub("", clause)


def _small(clause: str) -> str:
    """The first letter small, unless the word is written large as a whole."""
    return clause if clause[1:2].isupper() else clause[:1].lower() + clause[1:]


def _without_looks(clause: str) -> str:
    """Without adjectives of looks, and their article; "" where the clause is about the person."""
    clause = " ".join(_LOOKS.sub("", clause).split())
    return "" if names_the_person(clause) else clause


def _says_something(clause: str) -> bool:
    return any(word.lower() not in _LEFTOVERS for word in _WORD.findall(clause))
