"""Workers: the processes in which a party's programs run."""
