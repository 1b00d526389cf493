//! The `wallex` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    wallex::cli::main(std::env::args_os())
}
