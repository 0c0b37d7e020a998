//! The two things that need `unsafe`: libtorch's memory as Rust slices, and loading its CUDA half.

#![allow(unsafe_code)]

use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

fn check(t: &Tensor) -> Result<usize> {
    if t.device() != Device::Cpu || t.kind() != Kind::Float || !t.is_contiguous() {
        bail!(
            "expected contiguous f32 on the CPU, found {:?} on {:?} (contiguous: {})",
            t.kind(),
            t.device(),
            t.is_contiguous()
        );
    }
    Ok(t.numel())
}

/// The values of a contiguous CPU tensor of `f32`.
pub fn values(t: &Tensor) -> Result<&[f32]> {
    let n = check(t)?;
    // SAFETY: the checks above make data_ptr address `n` initialised floats, which live as long as
    // the tensor that the result borrows. Nobody writes them meanwhile: libtorch works on them only
    // inside calls, and the caller makes none that change `t` while it holds the slice.
    Ok(unsafe { std::slice::from_raw_parts(t.data_ptr().cast::<f32>(), n) })
}

/// The same, to be changed in place. The caller holds no other slice of the same storage.
pub fn values_mut(t: &mut Tensor) -> Result<&mut [f32]> {
    let n = check(t)?;
    // SAFETY: as in `values`; the exclusive borrow of the handle and the rule above exclude aliases.
    Ok(unsafe { std::slice::from_raw_parts_mut(t.data_ptr().cast::<f32>(), n) })
}

/// Loads libtorch_cuda.so where the library path has one, which makes CUDA visible to a binary that
/// was linked to the CPU library alone. Returns whether it is loaded.
pub fn load_cuda() -> bool {
    #[cfg(target_os = "linux")]
    {
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        // SAFETY: runs the library's initialisers, which register its kernels with the libtorch
        // already loaded; called before any other use of libtorch, from one thread.
        match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                let _for_good = library.into_raw();
                true
            }
            Err(_) => false,
        }
    }
    #[cfg(not(target_os = "linux"))]
    false
}
