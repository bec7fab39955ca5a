"""Three calls that are refused."""

from calls import BIND, mbind, set_mempolicy

mbind(1 << 40, 4096, 1)
set_mempolicy(99, 1)
set_mempolicy(BIND)
