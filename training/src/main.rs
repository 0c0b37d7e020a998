//! The `training` command.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::{Parser, Subcommand};
use training::{
    environment, export,
    finetune::{self, Outcome},
};

const EXAMPLE: &str = "Example, from a base model and labelled texts to a model folder:

  training finetune --base all-MiniLM-L6-v2 --train train.csv --valid valid.csv --out runs/first
  training export --model runs/first --valid valid.csv --calibration train.csv \\
      --out models/first --name first --languages en

Exit status: 0 done, 1 failed (the message says what and where), 2 the command line was not understood,
130 stopped by Ctrl-C with the state saved.";

/// Makes the models that sentistream runs: fine-tunes an encoder, exports it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Finetune(finetune::Args),
    Export(export::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Finetune(args) => run_finetune(args),
        Command::Export(args) => {
            environment::ensure().and_then(|()| export::run(args)).map(|()| ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        ExitCode::from(1)
    })
}

fn run_finetune(args: &finetune::Args) -> anyhow::Result<ExitCode> {
    environment::ensure()?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step and saving the state; again to stop at once");
    })?;
    Ok(match finetune::run(args, &stop)? {
        Outcome::Finished(_) => ExitCode::SUCCESS,
        Outcome::Interrupted(step) => {
            eprintln!("stopped after step {step}; the same command with --resume goes on");
            ExitCode::from(130)
        }
    })
}
