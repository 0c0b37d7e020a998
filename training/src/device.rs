//! Which device and which kind of number to compute with.

use anyhow::{Result, bail};
use tch::{Cuda, Device, Kind};

use crate::{
    args::{DeviceChoice, Precision},
    native,
};

/// The device and the kind that matrices are multiplied in.
pub fn choose(device: DeviceChoice, precision: Precision) -> Result<(Device, Kind)> {
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
    let bf16 = match precision {
        Precision::Fp32 => false,
        Precision::Bf16 => true,
        Precision::Auto => device != Device::Cpu || processor_computes_bf16(),
    };
    Ok((device, if bf16 { Kind::BFloat16 } else { Kind::Float }))
}

fn processor_computes_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}
