"""What a run will take, before it is launched: parameters, operations, memory, and the machine's peak."""
