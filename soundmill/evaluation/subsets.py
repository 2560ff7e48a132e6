"""Groups of generated sounds that are scored separately: by events in the prompt, number of labels, or kind of sound."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from soundmill.evaluation.sets import CatalogClip, Sets

# Words of prompts that describe several events (Ghosal et al. 2023).
SEVERAL = re.compile(r"\b(while|before|after|then|follow(?:s|ed)?)\b", re.IGNORECASE)
FEWEST = 2  # sounds needed to score a group

# The seven top-level categories of the AudioSet ontology (Gemmeke et al. 2017, CC BY-SA 4.0) with its classes; a class of several
# categories is listed under the first of them.
CLASSES = {
    "human sounds": """
        Applause; Babbling; Baby cry, infant cry; Baby laughter; Battle cry; Bellow; Belly laugh; Biting; Booing; Breathing;
        Burping, eructation; Chant; Chatter; Cheering; Chewing, mastication; Child singing; Child speech, kid speaking; Children
        playing; Children shouting; Choir; Chuckle, chortle; Clapping; Conversation; Cough; Crowd; Crying, sobbing; Digestive;
        Fart; Female singing; Female speech, woman speaking; Finger snapping; Gargling; Gasp; Giggle; Groan; Grunt; Hands; Heart
        murmur; Heart sounds, heartbeat; Hiccup; Hubbub, speech noise, speech babble; Human group actions; Human locomotion; Human
        sounds; Human voice; Humming; Laughter; Male singing; Male speech, man speaking; Mantra; Narration, monologue; Otoacoustic
        emission; Pant; Rapping; Respiratory sounds; Run; Screaming; Shout; Shuffle; Sigh; Singing; Sneeze; Snicker; Sniff;
        Snoring; Snort; Speech; Speech synthesizer; Stomach rumble; Synthetic singing; Throat clearing; Tinnitus, ringing in the
        ears; Wail, moan; Walk, footsteps; Wheeze; Whimper; Whispering; Whistling; Whoop; Wolf-whistling; Yawn; Yell; Yodeling
    """,
    "animals": """
        Animal; Bark; Bay; Bee, wasp, etc.; Bird; Bird flight, flapping wings; Bird vocalization, bird call, bird song; Bleat;
        Bow-wow; Buzz; Canidae, dogs, wolves; Cat; Cat communication; Caterwaul; Cattle, bovinae; Caw; Chicken, rooster; Chipmunk;
        Chirp, tweet; Clip-clop; Cluck; Coo; Cowbell; Cricket; Croak; Crow; Crowing, cock-a-doodle-doo; Dog; Domestic animals,
        pets; Donkey, ass; Duck; Fly, housefly; Fowl; Frog; Goat; Gobble; Goose; Growling; Gull, seagull; Hiss; Honk; Hoot; Horse;
        Howl; Insect; Livestock, farm animals, working animals; Meow; Moo; Mosquito; Mouse; Neigh, whinny; Nicker; Oink; Owl;
        Patter; Pig; Pigeon, dove; Purr; Quack; Rattle; Roar; Roaring cats (lions, tigers); Rodents, rats, mice; Sheep; Snake;
        Snort (horse); Squawk; Turkey; Whale vocalization; Whimper (dog); Wild animals; Yak; Yip
    """,
    "music": """
        A capella; Accordion; Acoustic guitar; Afrobeat; Alto saxophone; Ambient music; Angry music; Background music; Bagpipes;
        Banjo; Bass (instrument role); Bass drum; Bass guitar; Bassline; Bassoon; Beat; Beatboxing; Bell; Bicycle bell; Birthday
        music; Bluegrass; Blues; Bowed string instrument; Brass instrument; Bugle; Carnatic music; Cello; Change ringing
        (campanology); Chime; Chord; Christian music; Christmas music; Church bell; Clarinet; Classical music; Clavinet; Cornet;
        Country; Crash cymbal; Cumbia; Cymbal; Dance music; Didgeridoo; Disco; Double bass; Drone; Drone music; Drum; Drum and
        bass; Drum beat; Drum kit; Drum machine; Drum roll; Dub; Dubstep; Electric guitar; Electric piano; Electro; Electronic
        dance music; Electronic music; Electronic organ; Electronica; Exciting music; Flamenco; Flute; Folk music; French horn;
        Funk; Funk carioca; Funny music; Glockenspiel; Gong; Gospel music; Grime music; Grunge; Guitar; Hammond organ; Happy
        music; Harmonica; Harmony; Harp; Harpsichord; Heavy metal; Hi-hat; Hip hop music; House music; Independent music; Jazz;
        Jingle (music); Jingle bell; Keyboard (musical); Kuduro; Kwaito; Loop; Lullaby; Mallet percussion; Mandolin; Maraca;
        Marimba, xylophone; Mellotron; Melody; Middle Eastern music; Music; Music for children; Music genre; Music mood; Music of
        Africa; Music of Asia; Music of Bollywood; Music of Latin America; Music role; Musical concepts; Musical ensemble; Musical
        instrument; Musical note; New-age music; Noise music; Oboe; Oldschool jungle; Opera; Orchestra; Organ; Percussion; Piano;
        Pizzicato; Plucked string instrument; Pop music; Progressive rock; Psychedelic rock; Punk rock; Rattle (instrument);
        Reggae; Rhodes piano; Rhythm and blues; Rimshot; Rock and roll; Rock music; Sad music; Salsa music; Sampler; Saxophone;
        Scary music; Scratching (performance technique); Shofar; Singing bowl; Sitar; Ska; Snare drum; Soca music; Song; Soprano
        saxophone; Soul music; Soundtrack music; Steel guitar, slide guitar; Steelpan; String section; Strum; Swing music;
        Synthesizer; Tabla; Tambourine; Tapping (guitar technique); Techno; Tender music; Theme music; Theremin; Timpani;
        Traditional music; Trance music; Trap music; Trombone; Trumpet; Tubular bells; Tuning fork; UK garage; Ukulele;
        Vibraphone; Video game music; Violin, fiddle; Vocal music; Wedding music; Wind chime; Wind instrument, woodwind
        instrument; Wood block; Zither
    """,
    "natural sounds": """
        Crackle; Fire; Gurgling; Howl (wind); Natural sounds; Ocean; Rain; Rain on surface; Raindrop; Rustling leaves; Steam;
        Stream; Thunder; Thunderstorm; Water; Waterfall; Waves, surf; Wildfire; Wind; Wind noise (microphone)
    """,
    "things": """
        Accelerating, revving, vroom; Air brake; Air conditioning; Air horn, truck horn; Aircraft; Aircraft engine; Alarm; Alarm
        clock; Ambulance (siren); Arrow; Artillery fire; Basketball bounce; Bathtub (filling or washing); Bicycle; Blender; Boat,
        Water vehicle; Boiling; Boom; Burst, pop; Bus; Busy signal; Buzzer; Camera; Cap gun; Car; Car alarm; Car passing by; Cash
        register; Cellphone buzz, vibrating alert; Chainsaw; Chink, clink; Chop; Chopping (food); Chorus effect; Civil defense
        siren; Clock; Clunk; Coin (dropping); Computer keyboard; Crack; Cupboard open or close; Cutlery, silverware; Dental drill,
        dentist's drill; Dial tone; Ding-dong; Dishes, pots, and pans; Domestic sounds, home sounds; Door; Doorbell; Drawer open
        or close; Drill; Drip; Duck call (hunting tool); Effects unit; Electric shaver, electric razor; Electric toothbrush;
        Electronic tuner; Emergency vehicle; Engine; Engine knocking; Engine starting; Eruption; Explosion; Filing (rasp); Fill
        (with liquid); Fire alarm; Fire engine, fire truck (siren); Firecracker; Fireworks; Fixed-wing aircraft, airplane;
        Foghorn; Frying (food); Fusillade; Gears; Glass; Guitar amplifier; Gunshot, gunfire; Gush; Hair dryer; Hammer; Heavy
        engine (low frequency); Helicopter; Ice cream truck, ice cream van; Idling; Jackhammer; Jet engine; Kettle whistle; Keys
        jangling; Knock; Lawn mower; Light engine (high frequency); Liquid; Machine gun; Mechanical fan; Mechanisms; Medium engine
        (mid frequency); Microphone; Microwave oven; Miscellaneous sources; Motor vehicle (road); Motorboat, speedboat;
        Motorcycle; Non-motorized land vehicle; Packing tape, duct tape; Police car (siren); Pour; Power tool; Power windows,
        electric windows; Printer; Propeller, airscrew; Pulleys; Pump (liquid); Race car, auto racing; Rail transport; Railroad
        car, train wagon; Ratchet, pawl; Reversing beeps; Ringtone; Rowboat, canoe, kayak; Sailboat, sailing ship; Sanding;
        Sawing; Scissors; Sewing machine; Shatter; Ship; Shuffling cards; Single-lens reflex camera; Sink (filling or washing);
        Siren; Skateboard; Skidding; Slam; Sliding door; Slosh; Smoke detector, smoke alarm; Snap; Sonar; Sonic boom; Sound
        equipment; Sounds of things; Specific impact sounds; Splash, splatter; Splinter; Spray; Squeak; Squish; Steam whistle;
        Stir; Subway, metro, underground; Tap; Telephone; Telephone bell ringing; Telephone dialing, DTMF; Thump, thud; Thunk;
        Tick; Tick-tock; Tire squeal; Toilet flush; Tools; Toot; Toothbrush; Traffic noise, roadway noise; Train; Train horn;
        Train wheels squealing; Train whistle; Trickle, dribble; Truck; Typewriter; Typing; Vacuum cleaner; Vehicle; Vehicle horn,
        car horn, honking; Velcro, hook and loop fastener; Water tap, faucet; Whistle; Whoosh, swoosh, swish; Wobble; Wood;
        Writing; Zipper (clothing)
    """,
    "background": """
        Acoustic environment; Background noise; Cacophony; Channel, environment and background; Compact disc; Distortion; Echo;
        Environmental noise; Field recording; Gramophone record; Headphones; Inside, large room or hall; Inside, public space;
        Inside, small room; Loudspeaker; Mains hum; MP3; Noise; Outside, rural or natural; Outside, urban or manmade; Pink noise;
        Radio; Recording; Reverberation; Sidetone; Sound reproduction; Static; Tape hiss; Television; Throbbing; Vibration; White
        noise
    """,
    "ambiguous sounds": """
        Bang; Bass (frequency range); Beep, bleep; Blare; Boing; Bouncing; Breaking; Brief tone; Chirp tone; Clang; Clatter;
        Clickety-clack; Clicking; Creak; Crumpling, crinkling; Crunch; Crushing; Deformable shell; Ding; Fizz; Flap; Generic
        impact sounds; Grind; Harmonic; Hum; Infrasound; Jingle, tinkle; Onomatopoeia; Other sourceless; Ping; Plop; Puff; Pulse;
        Ringing (of resonator); Roll; Rub; Rumble; Rustle; Scrape; Scratch; Screech; Silence; Sine wave; Sizzle; Slap, smack;
        Smash, crash; Sound effect; Source-ambiguous sounds; Squeal; Surface contact; Tearing; Twang; Whack, thwack; Whip; Whir;
        Zing
    """,
}
# Labels of ESC-50, ESC-10 and the embedded corpus that differ from AudioSet's names.
OTHERS = {
    "human sounds": "crying baby; baby cry; sneezing; person sneeze; coughing; laughing; footsteps; drinking sipping",
    "animals": "dog bark; hen; insects; crickets; chirping birds; cow; rooster",
    "music": "hi-hat; kick drum",
    "natural sounds": "sea waves; crackling fire; fire crackling; pouring water; water drops",
    "things": """
        brushing teeth; door wood knock; door wood creaks; mouse click; keyboard typing; can opening; washing machine; clock alarm;
        clock tick; glass breaking; car horn; church bells; hand saw; airplane
    """,
}


def category_of(label: str) -> str | None:
    """The category of a label, or None; case does not matter, and `_` counts as a space."""
    return _categories().get(_plain(label))


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()


@cache
def _categories() -> dict[str, str]:
    listed = [(category, name) for table in (OTHERS, CLASSES) for category, names in table.items() for name in names.split(";")]
    return {_plain(name): category for category, name in listed}


def events(clip: CatalogClip) -> list[str]:
    """By the words of the prompt."""
    return [("several events" if SEVERAL.search(clip.prompt) else "one event")] if clip.prompt else []


def labels(clip: CatalogClip) -> list[str]:
    """By the number of labels; clips of two are in two groups, as in TANGO's table 7."""
    count = len(set(clip.labels))
    return {0: [], 1: ["1 label"], 2: ["2 labels", "2 or more labels"]}.get(count, ["2 or more labels"])


def categories(clip: CatalogClip) -> list[str]:
    """By the categories of the labels; labels without a known category are ignored."""
    kinds = {category_of(label) for label in clip.labels} - {None}
    return [" and ".join(sorted(kinds))] if kinds else []


GROUPINGS: dict[str, Callable[[CatalogClip], list[str]]] = {"events": events, "labels": labels, "categories": categories}


def groups(clips: Iterable[CatalogClip], grouping: str) -> dict[str, set[str]]:
    """Ids of the clips of each group, by its name; a clip may be in none or several."""
    by_name: dict[str, set[str]] = {}
    for clip in clips:
        for name in GROUPINGS[grouping](clip):
            by_name.setdefault(name, set()).add(clip.clip_id)
    return dict(sorted(by_name.items()))


def within(sets: Sets, ids: set[str]) -> Sets:
    """The same comparison restricted to these clips; the linear probe remains that of all clips."""

    of_ids = ("reference", "generated", "floor", "floor_reference", "codec", "codec_reference")
    kept = {field: tuple(clip_id for clip_id in getattr(sets, field) if clip_id in ids) for field in of_ids}
    kept |= {field: tuple(pair for pair in getattr(sets, field) if pair[0] in ids) for field in ("partners", "requested")}
    return replace(sets, **kept)


def can_be_scored(sets: Sets) -> bool:
    return min(len(sets.generated), len(sets.reference)) >= FEWEST
