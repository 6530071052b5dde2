"""Addresses on loopback for pods and Services, which no other cluster on this machine has."""

import random
import socket

HELD_PORT = 40064  # whoever has it at the last address of a block has the block
PODS, SERVICES = (64, 96), (96, 128)  # 127.x.0.0
BLOCK = 250


class Addresses:
    """Of one sort, in blocks of a /24."""

    def __init__(self, second: tuple[int, int]) -> None:
        self._second, self._held = second, list[socket.socket]()
        self._block, self._next = "", BLOCK

    def take(self) -> str:
        if self._next == BLOCK:
            self._block, self._next = self._new_block(), 0
        self._next += 1
        return f"{self._block}.{self._next}"

    def give_back(self) -> None:
        """All of them."""
        for one in self._held:
            one.close()

    def _new_block(self) -> str:
        while True:
            block = f"127.{random.randrange(*self._second)}.{random.randrange(256)}"
            holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                holder.bind((f"{block}.255", HELD_PORT))
            except OSError:
                holder.close()
                continue
            self._held.append(holder)
            return block
