"""Prompts that no constant of the proposers was chosen on: texts to copy from, and questions to answer."""

MINUTES = (
    "Minutes of the allotment society, 12 March. Present: Ms Okafor (chair), Mr Lindqvist, Ms Duarte, "
    "Mr Petrov. The water pump behind plot 14 has failed twice since January. Mr Lindqvist has asked "
    "two firms for an offer; the cheaper one is 640 euros and includes a new pressure switch. Ms Duarte"
    " proposed to raise the yearly fee from 38 to 42 euros so that the pump can be paid this summer. "
    "The proposal was accepted by three votes to one. Mr Petrov will ask the city whether the fence "
    "along the canal may be two metres high. The open day is on 9 June; every plot holder is asked to "
    "bake a cake or to bring a salad. Next meeting: 16 April, 19:00."
)

RECIPE = (
    "Red lentil soup. Chop one onion, two carrots and a stick of celery, and fry them in three spoons "
    "of olive oil until the onion is soft. Add two cloves of garlic, one spoon of cumin and half a "
    "spoon of paprika and stir for a minute. Add 300 grams of red lentils, one tin of tomatoes and 1.2 "
    "litres of vegetable stock. Bring it to the boil, then let it simmer for 25 minutes, stirring now "
    "and then. Add the juice of half a lemon, salt and pepper. Serve it with yoghurt and bread."
)

LAKE = (
    "The Lake House is a small museum on the northern shore of Lake Vessin. It was founded in 1957 by "
    "the painter Clara Holm, who had lived in the house since 1921. The ground floor shows her early "
    "drawings and the boats that she built with her brother. On the first floor there are forty "
    "paintings of the lake at different hours of the day. The garden is open from April to October; in "
    "winter visitors can follow a path along the shore. The museum is closed on Mondays, and on the "
    "first Sunday of each month the entry is free."
)

NOTICE = (
    "Notice to all residents. The lift in staircase B will be out of order from 8 to 19 November. "
    "During this time please use the lift in staircase A and the connecting door on the fourth floor. "
    "Parcels will be kept by the caretaker on the ground floor between 7 and 11 in the morning. If you "
    "need help with carrying things, please call 555 0139 one day before. We are sorry for the trouble "
    "and thank you for your patience. The house management."
)

LETTER = (
    "Dear Mr Halloran, thank you for your order of 3 May. We are sorry that the oak table arrived with "
    "a scratch on the left side. We can send a carpenter to your house, or take 15 percent off the "
    "price, or exchange the table for a new one within four weeks. Please tell us which of the three "
    "you prefer. The carpenter works in your area on Tuesdays and Thursdays. Yours sincerely, Ines "
    "Ferrand, customer service."
)

POEM = """The ferry leaves at half past five,
the gulls are loud, the ropes are wet.
A man sells coffee from a cart
and tells the news he did not get.

The town grows small behind the stern,
the lamps go out, the hills turn grey.
A child counts every passing buoy
and sleeps before the open bay."""

TABLE = """station,line,opened,platforms,daily_passengers
Harbour Square,blue,1911,4,48200
Mill Lane,blue,1911,2,9100
Observatory,green,1934,2,12750
Tannery Bridge,green,1934,2,7300
University North,red,1968,3,31900
Stadium,red,1972,4,15600
Airport East,red,2004,2,27450
"""

CODE = """class RingBuffer:
    def __init__(self, capacity):
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self.items = [None] * capacity
        self.head = 0
        self.count = 0

    def push(self, item):
        if self.count == len(self.items):
            raise OverflowError("the buffer is full")
        tail = (self.head + self.count) % len(self.items)
        self.items[tail] = item
        self.count += 1

    def pop(self):
        if self.count == 0:
            raise IndexError("the buffer is empty")
        item = self.items[self.head]
        self.items[self.head] = None
        self.head = (self.head + 1) % len(self.items)
        self.count -= 1
        return item
"""

WRONG = {"onion": "onoin", "minutes": "minuts", "lemon": "lemmon"}


def misspelt(text: str) -> str:
    """The text with a mistake in some words."""
    for right, wrong in WRONG.items():
        text = text.replace(right, wrong, 1)
    return text


EDITS = {
    "minutes, a name changed": f"Write this text again, but replace 'Petrov' by 'Ivanov'.\n\n{MINUTES}",
    "recipe, spelling": f"Correct the spelling of this text and return the whole text:\n\n{misspelt(RECIPE)}",
    "museum, a year changed": f"Repeat the following text, but write 1961 instead of 1957.\n\n{LAKE}",
    "notice, a date changed": f"Repeat this notice, but write '21 November' for '19 November'.\n\n{NOTICE}",
    "poem, a title added": f"Copy this poem and put the title 'The Ferry' above it:\n\n{POEM}",
    "table, a column added": f"Return this CSV file with a column 'city' that is always 'Bremen':\n\n{TABLE}",
    "code, a method renamed": f"Rename the method pop to take in all of this code:\n\n```python\n{CODE}```",
}
QUOTES = {
    "letter, quoted": f"{LETTER}\n\nQuote the sentences of this letter that say what the company offers.",
    "museum, quoted": f"{LAKE}\n\nWhich sentences of the text name a year? Repeat these sentences exactly.",
    "notice, quoted": f"{NOTICE}\n\nWhat should residents do? Answer by quoting sentences of the notice.",
}
CHAT = {
    "dog": "What should I consider before adopting a dog from a shelter?",
    "interview": "I have a job interview tomorrow and I am nervous. What can I do tonight?",
    "story": "Write a short story about a clockmaker who receives a letter from the future.",
    "sky": "Why is the sky blue in the daytime and red at sunset?",
    "budget": "How can a student with little money eat healthily?",
    "email": "Write an email to my landlord and ask him to repair the heating.",
}
COPIED = 4  # tokens in a row that the prompt has too: then an answer's token is copied


def copied(prompt: list[int], answer: list[int] | tuple[int, ...]) -> float:
    """The share of an answer's tokens that it copies from its prompt."""
    known = {tuple(prompt[at : at + COPIED]) for at in range(len(prompt) - COPIED + 1)}
    marks = [False] * len(answer)
    for at in range(len(answer) - COPIED + 1):
        if tuple(answer[at : at + COPIED]) in known:
            marks[at : at + COPIED] = [True] * COPIED
    return sum(marks) / max(1, len(marks))
