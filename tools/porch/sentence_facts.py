"""Writes simple exchanges from small tables: what a child's first reader would hold."""

import random
from collections.abc import Callable
from pathlib import Path

from tools.porch.conversations import Conversation, exchange


def _words(text: str) -> list[str]:
    return text.split()


_CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens,"
    "Poland Warsaw, Austria Vienna, Hungary Budapest, Sweden Stockholm, Norway Oslo,"
    "Denmark Copenhagen, Finland Helsinki, Ireland Dublin, Scotland Edinburgh, Russia Moscow,"
    "Turkey Ankara, Egypt Cairo, Kenya Nairobi, Nigeria Abuja, Ghana Accra, India Delhi,"
    "China Beijing, Japan Tokyo, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Peru Lima,"
    "Australia Canberra, Canada Ottawa, Cuba Havana, Chile Santiago, England London,"
    "Belgium Brussels, Iraq Baghdad, Iran Tehran, Bulgaria Sofia, Ukraine Kyiv, Nepal Kathmandu"
)
_OPPOSITES = (
    "hot cold, big small, tall short, fast slow, old young, happy sad, light dark, day night,"
    "up down, left right, open closed, full empty, hard soft, wet dry, rich poor, early late,"
    "strong weak, good bad, near far, loud quiet, clean dirty, high low, long short, new old,"
    "first last, true false, love hate, begin end, inside outside, easy difficult, thick thin,"
    "heavy light, wide narrow, sweet sour, awake asleep, brave afraid, cheap expensive, win lose"
)
_COLOURS = (
    "the sky blue, grass green, snow white, coal black, a banana yellow, blood red, milk white,"
    "a carrot orange, the sea blue, a lemon yellow, a tomato red, chocolate brown,"
    "an elephant gray, the sun yellow, a leaf green, a cherry red, salt white,"
    "a frog green, a strawberry red"
)
_SOUNDS = (
    "cow moo, dog woof, cat meow, sheep baa, duck quack, pig oink, horse neigh, lion roar,"
    "hen cluck, bee buzz, mouse squeak, owl hoot, frog croak, wolf howl, snake hiss, crow caw"
)
_YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, hen chick, duck duckling, bear cub,"
    "goat kid, deer fawn, lion cub, frog tadpole, goose gosling, pig piglet, swan cygnet"
)
_FOODS = (
    "cow grass, lion meat, rabbit carrots, monkey bananas, horse hay, squirrel nuts, panda bamboo,"
    "cat fish, mouse cheese, bird seeds, giraffe leaves, bear honey, frog flies, sheep grass"
)
_GROUPS = {
    "fruits": "apples bananas oranges pears grapes cherries lemons peaches plums melons",
    "vegetables": "carrots potatoes onions peas beans cabbages tomatoes cucumbers beets",
    "animals": "dogs cats horses cows sheep lions bears rabbits elephants monkeys wolves",
    "birds": "eagles sparrows owls ducks crows swans robins parrots geese penguins",
    "colours": "red blue green yellow orange purple brown black white pink",
    "countries": "France Germany Italy Spain Japan China India Brazil Canada Egypt",
    "cities": "London Paris Rome Berlin Tokyo Cairo Delhi Moscow Madrid Boston",
    "sports": "football tennis swimming running basketball cycling hockey cricket",
    "things in a kitchen": "pots pans knives forks spoons plates cups bowls",
    "drinks": "water milk tea coffee juice lemonade cocoa",
    "seasons": "spring summer autumn winter",
    "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "flowers": "roses tulips lilies daisies violets sunflowers daffodils",
    "tools": "hammers saws drills pliers screwdrivers axes",
}
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = _words(
    "January February March April May June July August September October November December"
)
_NAMES = _words(
    "Ada Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mary Noah Olive Peter "
    "Rosa Sam Tom Vera Anna Oscar Lucy Paul Nina Max Ruth Simon Ella Hugo Alice George "
    "Martha Daniel"
)
_TRADES = (
    "librarian, teacher, cook, gardener, sailor, doctor, farmer, shopkeeper, travel guide, baker,"
    "carpenter, nurse, storyteller, waiter, scientist, bus driver, musician, hotel clerk"
)
_NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)


def table_exchanges(count: int, chance: random.Random) -> list[Conversation]:
    """Returns so many exchanges, each from a table drawn at random."""
    return [chance.choice(_WRITERS)(chance) for _ in range(count)]


def written_exchanges(path: Path) -> list[Conversation]:
    """Reads hand-written lines `question | question => answer`; `\\n` breaks a line."""
    talks = []
    for line in path.read_text("utf-8").splitlines():
        questions, _, answer = line.partition(" => ")
        answer = answer.replace("\\n", "\n")
        talks += [exchange(question, answer) for question in questions.split(" | ")]
    return talks


def _rows(table: str) -> list[tuple[str, str]]:
    pairs = [row.strip().rpartition(" ") for row in table.split(",")]
    return [(first, second) for first, _, second in pairs]


def _pick(table: str, chance: random.Random) -> tuple[str, str]:
    return chance.choice(_rows(table))


def _capital(chance: random.Random) -> Conversation:
    country, city = _pick(_CAPITALS, chance)
    if chance.random() < 0.3:
        return exchange(f"Where is {city}?", f"{city} is the capital of {country}.")
    question = chance.choice(("What is the capital of {}?", "Name the capital of {}."))
    return exchange(question.format(country), f"The capital of {country} is {city}.")


def _opposite(chance: random.Random) -> Conversation:
    word, other = _pick(_OPPOSITES, chance)
    return exchange(f"What is the opposite of {word}?", f"The opposite of {word} is {other}.")


def _colour(chance: random.Random) -> Conversation:
    thing, colour = _pick(_COLOURS, chance)
    spelled = chance.choice(("color", "colour"))
    return exchange(f"What {spelled} is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}.")


def _animal(chance: random.Random) -> Conversation:
    kind = chance.randrange(3)
    animal, word = _pick((_SOUNDS, _YOUNG, _FOODS)[kind], chance)
    one = f"{'an' if animal[0] in 'aeiou' else 'a'} {animal}"
    capital = one[0].upper() + one[1:]
    if kind == 0:
        return exchange(f"What does {one} say?", f"{capital} says {word}.")
    if kind == 1:
        return exchange(f"What is a young {animal} called?", f"A young {animal} is a {word}.")
    return exchange(f"What does {one} eat?", f"{capital} eats {word}.")


def _sum(chance: random.Random) -> Conversation:
    first, second = chance.randint(0, 20), chance.randint(0, 12)
    sign, word, value = chance.choice(
        (
            ("+", "plus", first + second),
            ("-", "minus", first + second - second),
            ("*", "times", first * second),
        )
    )
    left = first + second if sign == "-" else first
    joined = chance.choice((f"{left} {word} {second}", f"{left} {sign} {second}"))
    return exchange(f"What is {joined}?", f"{joined[0].upper()}{joined[1:]} is {value}.")


def _listing(chance: random.Random) -> Conversation:
    group = chance.choice(list(_GROUPS))
    count = chance.randint(2, 4)
    words = chance.sample(_GROUPS[group].split(), count)
    order = chance.choice(("Name", "List", "Give me", "Tell me")) + f" {_NUMBERS[count]} {group}."
    listed = ", ".join(words[:-1]) + " and " + words[-1]
    return exchange(order, f"{listed[0].upper()}{listed[1:]}.")


def _calendar(chance: random.Random) -> Conversation:
    names, unit = chance.choice(((_DAYS, "day"), (_MONTHS, "month")))
    index = chance.randrange(len(names))
    step, word = chance.choice(((1, "after"), (-1, "before")))
    answer = names[(index + step) % len(names)]
    question = f"Which {unit} comes {word} {names[index]}?"
    return exchange(question, f"{answer} comes {word} {names[index]}.")


def _counting(chance: random.Random) -> Conversation:
    last = chance.randint(3, 12)
    words = chance.random() < 0.5
    counted = [_NUMBERS[n] if words else str(n) for n in range(1, last + 1)]
    listed = ", ".join(counted)
    return exchange(f"Count to {_NUMBERS[last] if words else last}.", f"{listed.capitalize()}.")


def _played_part(chance: random.Random) -> Conversation:
    name, trade = chance.choice(_NAMES), chance.choice(_TRADES.split(",")).strip()
    system = chance.choice(("You are {}, a {}.", "Your name is {}. You work as a {}."))
    question, answer = chance.choice(
        (
            ("What is your name?", "My name is {}."),
            ("Who are you?", "I am {}, a {}."),
            ("What do you do?", "I am a {1}. My name is {0}."),
            ("Hello!", "Hello! I am {}, the {}. How can I help you?"),
        )
    )
    return exchange(question, answer.format(name, trade), system.format(name, trade))


def _remembered_name(chance: random.Random) -> Conversation:
    name = chance.choice(_NAMES)
    greeting = chance.choice((f"My name is {name}.", f"Hi, I am {name}.", f"I'm {name}."))
    talk = exchange(greeting, f"Hello, {name}! It is nice to meet you. How can I help you?")
    question = chance.choice(("What is my name?", "Do you remember my name?", "Who am I?"))
    return talk + exchange(question, f"Your name is {name}.")


_WRITERS: tuple[Callable[[random.Random], Conversation], ...] = (
    _capital,
    _opposite,
    _colour,
    _animal,
    _sum,
    _sum,
    _listing,
    _calendar,
    _counting,
    _played_part,
    _played_part,
    _remembered_name,
)
