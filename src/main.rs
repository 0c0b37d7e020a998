//! The `sentistream` binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use sentistream::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
