"""Words that captions use for the classes of VOC, COCO and the generated data set."""

from __future__ import annotations

__all__ = ["COCO_CLASSES", "GROUPS", "OTHERS"]

_TEXT = """
person, human, man, woman, boy, girl, child, kid, baby, toddler, infant, guy, lady, gentleman, \
adult, teenager, crowd, family, friend, mother, father, mom, dad, son, daughter, brother, sister, \
player, batter, pitcher, catcher, umpire, referee, goalie, athlete, skier, snowboarder, \
skateboarder, skater, surfer, swimmer, runner, rider, cyclist, biker, jockey, driver, passenger, \
pedestrian, tourist, student, worker, farmer, soldier, officer, policeman, policewoman, fireman, \
fisherman, businessman, cowboy, chef, waiter, waitress, vendor, performer, singer, musician, \
bride, groom
bicycle, bike, mountain bike, tricycle
car, automobile, sedan, taxi, cab, suv, minivan, van, jeep, convertible, hatchback, race car, \
police car
motorcycle, motorbike, motor cycle, scooter, moped, dirt bike, bike
airplane, aeroplane, plane, aircraft, airliner, jet, jetliner, biplane, fighter jet, seaplane
bus, double decker, minibus
train, locomotive, tram, trolley, subway, railcar, streetcar, train car
truck, lorry, pickup, fire truck, fire engine, semi, tow truck
boat, ship, sailboat, canoe, kayak, ferry, yacht, rowboat, dinghy, vessel, gondola, raft, barge, \
catamaran
traffic light, stoplight, traffic signal, stop light
fire hydrant, hydrant
stop sign
parking meter
bench, park bench
bird, seagull, gull, duck, goose, swan, pigeon, parrot, owl, eagle, hawk, sparrow, robin, finch, \
crow, heron, pelican, penguin, flamingo, ostrich, peacock, chicken, rooster, hen, turkey, \
hummingbird, dove, stork
cat, kitten, kitty, feline
dog, puppy, pup, doggy, canine, terrier, poodle, bulldog, retriever, labrador, shepherd, hound, \
collie, corgi, husky, dachshund
horse, pony, foal, colt, mare, stallion
sheep, lamb, ram, ewe
cow, cattle, bull, calf, ox, heifer
elephant
bear, polar bear, grizzly
zebra
giraffe
backpack, rucksack, knapsack
umbrella, parasol
handbag, purse, hand bag
tie, necktie, bow tie
suitcase, luggage, briefcase
frisbee, disc
skis, ski
snowboard
sports ball, ball, soccer ball, football, basketball, volleyball
kite
baseball bat, bat
baseball glove, mitt, baseball mitt
skateboard
surfboard, surf board
tennis racket, racket, racquet, tennis racquet
bottle, flask
wine glass, goblet
cup, mug, teacup, coffee cup
fork
knife
spoon
bowl
banana
apple
sandwich, burger, hamburger, sub
orange, tangerine, mandarin
broccoli
carrot
hot dog
pizza
donut, doughnut
cake, cupcake
chair, armchair, high chair, recliner, rocking chair
couch, sofa, loveseat, settee, futon
potted plant, pottedplant, houseplant, plant, flower pot
bed, bunk bed
dining table, diningtable, table
toilet, toilet seat
tv, tvmonitor, tv monitor, television, television set, monitor, screen
laptop, notebook computer
mouse, computer mouse
remote, remote control
keyboard
cell phone, cellphone, phone, smartphone, mobile phone, telephone, iphone
microwave, microwave oven
oven, stove
toaster
sink, wash basin
refrigerator, fridge
book
clock, clock tower
vase
scissors
teddy bear, stuffed bear, stuffed animal
hair drier, hair dryer, hairdryer, blow dryer
toothbrush
red-striped egg, striped egg, egg
blue-striped egg, striped egg, egg
red-checked box, checked box, box, cube
yellow-checked box, checked box, box, cube
green-ringed pear, ringed pear, pear
pink-ringed pear, ringed pear, pear
blue-dotted flower, dotted flower, flower
green-dotted flower, dotted flower, flower
"""
GROUPS = tuple(
    tuple(phrase.strip() for phrase in line.split(",")) for line in _TEXT.strip().splitlines()
)
"""Words for one class each, the plain one first. A word may be in several groups."""

COCO_CLASSES = tuple(group[0] for group in GROUPS[:80])
"""COCO's classes in their order."""

OTHERS = (
    "rock", "barrel", "statue", "crate", "fountain", "log", "pillar", "lantern", "basket",
    "mailbox", "wheelbarrow", "ladder", "shrub", "tent", "fence", "windmill",
)  # fmt: skip
"""Objects that are in no group; all begin with a consonant and have a regular plural."""
