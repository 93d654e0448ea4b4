// plx_logits_tool FOLDER TOKENS NUM_SEQUENCES PREFILL OUT: the logits of a checkpoint, twice.
// plx_logits_tool --copy FOLDER OUT_FOLDER: loads a checkpoint and saves it again.
// plx_logits_tool --new FOLDER SEED: adds the random weights of a new model to a config.json.
//
// TOKENS holds int64 [B, T], OUT receives float32 [2, B, T, V], both raw: first the logits of whole
// sequences, then those through the key-value cache, where the first PREFILL + b tokens of sequence
// b enter at once (so the sequences are unequal) and the rest one by one.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "io/atomic_file.h"
#include "nn/checkpoint.h"
#include "nn/model_testing.h"
#include "parallax/error.h"

namespace {

void run(const std::vector<std::string>& args) {
  if (args.size() == 3 && args[0] == "--copy") {
    parallax::nn::save_pretrained(parallax::nn::load_pretrained(args[1]), args[2]);
    return;
  }
  if (args.size() == 3 && args[0] == "--new") {
    torch::manual_seed(std::stoull(args[2]));
    parallax::nn::save_pretrained(parallax::nn::Decoder(parallax::nn::load_config(args[1])),
                                  args[1]);
    return;
  }
  PLX_CHECK(args.size() == 5, "usage: plx_logits_tool FOLDER TOKENS NUM_SEQUENCES PREFILL OUT");
  const torch::NoGradGuard no_grad;
  parallax::nn::Decoder model = parallax::nn::load_pretrained(args[0]);
  const std::string bytes = parallax::io::read_file(args[1]);
  torch::Tensor tokens =
      torch::empty({static_cast<int64_t>(bytes.size() / sizeof(int64_t))}, torch::kInt64);
  std::memcpy(tokens.data_ptr(), bytes.data(), bytes.size());
  tokens = tokens.view({std::stoll(args[2]), -1});

  std::vector<int64_t> prefill;
  for (int64_t seq = 0; seq < tokens.size(0); ++seq)
    prefill.push_back(std::min<int64_t>(std::stoll(args[3]) + seq, tokens.size(1)));
  const torch::Tensor hidden = torch::stack(
      {model->hidden(tokens), parallax::nn::testing::decode_all(model, tokens, prefill)});
  const torch::Tensor logits = model->logits(hidden).contiguous();
  parallax::io::write_file(args[4], {static_cast<const char*>(logits.const_data_ptr()),
                                     static_cast<size_t>(logits.nbytes())});
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv + 1, argv + argc});
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
