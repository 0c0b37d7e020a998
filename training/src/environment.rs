//! Settings that libtorch and the C library read before `main`: the process starts itself once more
//! with them.

use std::{env, os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};

/// OpenMP's idle threads sleep instead of spinning (four times faster where the cores are shared), and
/// malloc keeps the large blocks that every step frees and asks for again (a sixth faster).
const WANTED: [(&str, &str); 3] =
    [("OMP_WAIT_POLICY", "PASSIVE"), ("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "17179869184")];

/// Returns when the variables are set, by the user or by a restart of this process.
pub fn ensure() -> Result<()> {
    let missing: Vec<_> = WANTED.iter().filter(|(name, _)| env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let program = env::current_exe().context("cannot find this program's own file")?;
    let mut again = Command::new(program);
    again.args(env::args_os().skip(1));
    for (name, value) in missing {
        again.env(name, value);
    }
    Err(again.exec()).context("cannot start again with OMP_WAIT_POLICY and malloc settings")
}
