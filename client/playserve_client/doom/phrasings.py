"""Instructions in words: for each goal twelve to train on and six that are never trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PHRASINGS", "Phrasings"]


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to ask for one goal.

    Attributes:
        training: Recordings carry these.
        held_out: Nothing that is trained on carries these.
    """

    training: tuple[str, ...]
    held_out: tuple[str, ...]


#: By name of the goal.
PHRASINGS: Mapping[str, Phrasings] = {
    "shoot_monster": Phrasings(
        (
            "shoot the monster", "kill the monster", "line up with the monster and fire", "take out the demon",
            "strafe in front of the enemy and shoot it", "destroy the monster across the room",
            "aim at the monster and kill it", "move sideways and shoot the creature", "get rid of the monster",
            "fire at the beast until it dies", "eliminate the enemy by the far wall", "shoot the creature dead",
        ),
        (
            "gun the monster down", "put a bullet into the monster", "slay the enemy with your pistol",
            "make sure the creature on the other side dies", "step across and shoot that thing", "hit the monster",
        ),
    ),
    "defend_center": Phrasings(
        (
            "shoot the monsters around you", "defend yourself from all sides", "turn and kill every monster",
            "hold the center of the arena", "kill as many enemies as you can", "shoot whoever comes close",
            "stay in the middle and shoot all attackers", "keep turning and shoot the monsters",
            "survive by killing everything that approaches", "defend the center", "gun down the monsters in the ring",
            "look around and shoot enemies",
        ),
        (
            "let nobody reach you alive", "protect the middle of the room", "spin and shoot what attacks you",
            "kill the creatures that surround you", "use your ammo on the approaching monsters", "hold your ground",
        ),
    ),
    "shoot": Phrasings(
        (
            "shoot the monsters", "kill the enemies in front of you", "open fire", "defend the line",
            "fire at everything that moves", "shoot down the attackers", "attack the monsters with your gun",
            "kill as many monsters as possible", "gun down the enemies", "use your weapon on the monsters",
            "blast the creatures", "destroy every enemy you see",
        ),
        (
            "fire on the enemies", "take the monsters down with your gun", "shoot at whatever comes",
            "kill all attackers", "start shooting", "attack everything ahead",
        ),
    ),
    "hold_fire": Phrasings(
        (
            "hold your fire", "do not shoot", "don't fire your gun", "watch the monsters without shooting",
            "keep your finger off the trigger", "never fire a shot", "spare the monsters", "just look, do not attack",
            "do not attack anyone", "stay peaceful and save your ammo", "leave the monsters alone",
            "no shooting, only watch",
        ),
        (
            "don't shoot anything", "keep your gun silent", "do not open fire", "let the monsters live",
            "watch them and hold fire", "refrain from shooting",
        ),
    ),
    "collect": Phrasings(
        (
            "collect the medkits", "pick up all medkits", "grab the health packs", "gather health",
            "walk to the medkits and take them", "get as many medkits as you can", "stay alive by taking medkits",
            "find the first aid kits and pick them up", "run over the health kits", "take every medkit you see",
            "heal yourself with the medkits", "go and get the health boxes",
        ),
        (
            "fetch the medkits", "pick up the first aid boxes", "collect health packs", "go for the medkits",
            "take the health kits", "gather every medkit",
        ),
    ),
    "avoid": Phrasings(
        (
            "avoid the medkits", "do not touch the medkits", "stay away from the health packs",
            "walk around but don't pick anything up", "leave the medkits where they are", "keep clear of the medkits",
            "do not collect health", "never step on a medkit", "don't take any health kits",
            "move about without touching the first aid kits", "steer around the medkits", "keep off the health boxes",
        ),
        (
            "don't pick up medkits", "keep away from the first aid boxes", "leave all health packs alone",
            "avoid every health kit", "do not take the medkits", "walk but touch no medkit",
        ),
    ),
    "corridor": Phrasings(
        (
            "go down the corridor to the vest", "fight your way to the green armor", "kill the guards, take the vest",
            "reach the end of the corridor alive", "shoot the soldiers and get the armor",
            "clear the corridor and grab the vest", "get to the armor at the far end", "advance and kill everyone",
            "make it through the deadly corridor", "shoot the enemies on both sides and move on",
            "push forward to the armor", "take the vest at the end of the hall",
        ),
        (
            "get through the hallway to the armor", "kill the men in the niches and get the vest",
            "fight to the end of the hall", "walk the corridor and pick up the armor", "reach the green vest",
            "cross the deadly hallway",
        ),
    ),
    "find_vest": Phrasings(
        (
            "find the vest", "find your way home", "go to the room with the armor", "walk through the maze to the vest",
            "get the green armor", "search the rooms for the vest", "reach the armor in the maze",
            "navigate to the green vest", "find the armor as fast as you can", "go home", "look for the vest",
            "explore the rooms until you find the armor",
        ),
        (
            "locate the vest", "walk to the green armor", "make your way to the vest", "take the armor in the maze",
            "head for the room with the vest", "find the way to the armor",
        ),
    ),
    "dodge": Phrasings(
        (
            "dodge the fireballs", "take cover", "avoid being hit", "stay alive by moving aside",
            "evade the fireballs", "keep out of the line of fire", "strafe away from the shots", "don't get hit",
            "move left and right to survive", "survive as long as possible", "get out of the way of the fireballs",
            "sidestep every shot",
        ),
        (
            "escape the fireballs", "step aside when they shoot", "keep dodging", "do not let the fire touch you",
            "avoid the projectiles", "stay out of the way of the shots",
        ),
    ),
    "green": Phrasings(
        (
            "get the green vest", "pick up the green armor", "walk to the green one", "take the green vest",
            "touch the green armor", "go to the green armor", "grab the green jacket", "look for the green vest",
            "the green vest, please", "collect the green armor, not the other", "head for the green vest",
            "choose the green armor",
        ),
        (
            "fetch the green vest", "go and take the green one", "reach the green armor", "pick the green vest",
            "run to the green jacket", "I want the green armor",
        ),
    ),
    "red": Phrasings(
        (
            "get the red vest", "pick up the red armor", "walk to the red one", "take the red vest",
            "touch the red armor", "go to the red armor", "grab the red jacket", "look for the red vest",
            "the red vest, please", "collect the red armor, not the other", "head for the red vest",
            "choose the red armor",
        ),
        (
            "fetch the red vest", "go and take the red one", "reach the red armor", "pick the red vest",
            "run to the red jacket", "I want the red armor",
        ),
    ),
}  # fmt: skip
