# THE list of compiled Hopper kernels. A row is one unit with one instance: what it computes, its
# dtype, its head size, and the bytes of spilled registers that it may have. A row with spills says
# how they were measured to be worth it: in the backward's pass over keys the loaders spill with 24
# registers, outside of the copies' own instructions, and at head size 128 the consumers some 12 words
# per step with 240. With 40 and 232 these spill more and the call is up to 10 % slower
# (docs/kernels/sm90_backward.md); at 192 and 256 they would spill twice as much.
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
  "forward float16 256 0"
  "backward bfloat16 64 0"
  "backward bfloat16 96 76"
  "backward bfloat16 128 324"
  "backward bfloat16 192 380"
  "backward bfloat16 256 380"
  "backward float16 64 0"
  "backward float16 96 76"
  "backward float16 128 324"
  "backward float16 192 380"
  "backward float16 256 380")
