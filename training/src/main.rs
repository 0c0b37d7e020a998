//! The `training` command.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::{Parser, Subcommand};
use training::finetune::{self, Outcome};

/// Makes the models that sentistream runs: fine-tune an encoder, export it.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Finetune(finetune::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Finetune(args) => run_finetune(args),
    };
    result.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        ExitCode::from(1)
    })
}

fn run_finetune(args: &finetune::Args) -> anyhow::Result<ExitCode> {
    training::environment::ensure()?;
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
