"""A window of one colour that prints, as JSON lines, every key, button and motion that reaches it; a program.

    python -m desktop.window TITLE X,Y,W,H RRGGBB [over]

It takes the focus, unless it is only to lie over what has it.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    from Xlib import XK, X, display

    title, place, colour = sys.argv[1:4]
    x, y, width, height = (int(part) for part in place.split(","))
    connection = display.Display()
    screen = connection.screen()
    mask = (
        X.KeyPressMask | X.KeyReleaseMask | X.ButtonPressMask | X.ButtonReleaseMask | X.PointerMotionMask
        | X.ExposureMask | X.StructureNotifyMask | X.FocusChangeMask
    )  # fmt: skip
    window = screen.root.create_window(
        x, y, width, height, 0, screen.root_depth, X.InputOutput, X.CopyFromParent,
        background_pixel=int(colour, 16), event_mask=mask,
    )  # fmt: skip
    window.set_wm_name(title)
    window.set_wm_class("test", "Test")
    window.map()

    def say(**event: Any) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    while True:
        event = connection.next_event()
        if event.type == X.Expose and event.count == 0:
            if sys.argv[4:] != ["over"]:
                window.set_input_focus(X.RevertToNone, X.CurrentTime)
            connection.sync()
            say(ready=window.id)
        elif event.type in (X.KeyPress, X.KeyRelease):
            keysym = connection.keycode_to_keysym(event.detail, 0)
            say(key=XK.keysym_to_string(keysym) or hex(keysym), down=event.type == X.KeyPress)
        elif event.type in (X.ButtonPress, X.ButtonRelease):
            say(button=event.detail, down=event.type == X.ButtonPress)
        elif event.type == X.MotionNotify:
            say(x=event.root_x, y=event.root_y)
        elif event.type in (X.FocusIn, X.FocusOut):
            say(focus=event.type == X.FocusIn)


if __name__ == "__main__":
    main()
