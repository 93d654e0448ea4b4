# THE list of compiled Hopper kernels. A row is one unit with one instance: what it computes, its
# dtype, its head size, and the bytes of spilled registers that it may have. A row with spills says
# how they were measured to be worth it.
set(PLX_SM90_INSTANCES
  "forward bfloat16 64 0"
  "forward bfloat16 96 0"
  "forward bfloat16 128 0"
  "forward bfloat16 192 0"
  "forward bfloat16 256 0"
  "forward float16 64 0"
  "forward float16 96 0"
  "forward float16 128 0"
  "forward float16 192 0"
  "forward float16 256 0")
