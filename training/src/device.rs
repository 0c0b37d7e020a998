//! Which device to compute on, and what it can.

use anyhow::{Result, bail};
use tch::{Cuda, Device};

use crate::{args::DeviceChoice, native};

/// The device asked for; one that cannot be had is an error.
pub fn choose(device: DeviceChoice) -> Result<Device> {
    let device = match device {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Auto if native::load_cuda() && Cuda::is_available() => Device::Cuda(0),
        DeviceChoice::Auto => Device::Cpu,
        DeviceChoice::Cuda => {
            let loaded = native::load_cuda();
            if !Cuda::is_available() {
                bail!(
                    "--device cuda: libtorch_cuda.so is {}, libtorch finds no CUDA device; put the lib folder of a CUDA build of torch 2.11 first on LD_LIBRARY_PATH, or use --device cpu",
                    if loaded { "loaded" } else { "not found" }
                );
            }
            Device::Cuda(0)
        }
    };
    Ok(device)
}

/// Whether the processor has instructions for bf16.
pub fn processor_computes_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
