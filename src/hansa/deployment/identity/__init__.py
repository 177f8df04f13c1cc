"""Identity: who is who in a federation, and how each proves it.

``names`` says what a name is, ``keys`` what a party can prove with, ``files`` how secrets lie on disk, ``certificates`` what the
authority says about a key, ``authority`` how it comes to say so, ``invitation`` how a stranger gets in, ``credentials`` what a
party keeps at home. Everything here is a pure function or a file: nothing listens, nothing dials, and time comes in as an argument.
"""
