// plx: train, evaluate and run language models with Parallax attention.
// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <iostream>

#include "commands.h"
#include "parallax/version.h"

int main(int argc, char** argv) {
  CLI::App app{"plx: train, evaluate and run language models with Parallax attention"};
  app.set_version_flag("--version", PLX_VERSION);
  app.require_subcommand(1);
  parallax::plx::add_prepare(app);
  parallax::plx::add_train(app);
  parallax::plx::add_generate(app);
  parallax::plx::add_eval(app);
  parallax::plx::add_info(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::RuntimeError& error) {  // a command's own exit status
    return error.get_exit_code();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const std::exception& error) {
    std::cerr << "plx: " << error.what() << '\n';
    return 1;
  }
}
