"""Whether a policy acts upon what it sees, or upon what it did before; see docs and the three modules.

:mod:`.toy` is the toy environment behind the claim that depth helps to tell the two apart, :mod:`.score` Open P2P's
causality score of a `p2p` checkpoint, :mod:`.intervene` our own measure, which knows the right answers.
"""
