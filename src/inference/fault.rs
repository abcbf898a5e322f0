//! Whose fault a failed run is: the input's, which fails alone, or the device's, for which the session is opened again.
//!
//! ONNX Runtime passes a device's error on as text under a general code, so most are told by their words: the prefixes of
//! its CUDA checks (`onnxruntime/core/providers/cuda/cuda_call.cc`), its arena's refusals (`bfc_arena.cc`), TensorRT's
//! enqueue, the loss codes of DirectX and OpenCL. What is not recognised counts as the input's: a wrong guess in that
//! direction costs one frame, in the other all of them.
//!
//! Pure; belongs to no thread; no overload of its own.

use ort::ErrorCode;

use super::InferenceError;

/// Words of a fault that lies in the device or its memory.
const OF_DEVICE: &[&str] = &[
    "out of memory",
    "failed to allocate memory",
    "available memory of",
    "bad allocation",
    "bad_alloc",
    "cuda failure",
    "cuda error",
    "cublas failure",
    "cudnn failure",
    "cudnn_fe failure",
    "cufft failure",
    "enqueue failed",
    "device lost",
    "device removed",
    "device_removed",
    "device_hung",
    "device_reset",
    "device instance has been suspended",
    "cl_out_of_resources",
    "cl_out_of_host_memory",
    "cl_mem_object_allocation_failure",
    "cl_device_not_available",
];

/// Words that a device's library says of an argument it was given.
const OF_INPUT: &[&str] =
    &["invalid argument", "invalid value", "bad_param", "not_supported", "invalid_value", "bad param"];

/// Whether a run failed for a reason that another input would have met as well.
pub(super) fn is_of_device(code: ErrorCode, message: &str) -> bool {
    match code {
        ErrorCode::DeviceReset | ErrorCode::EngineError => true,
        ErrorCode::InvalidArgument | ErrorCode::InvalidGraph | ErrorCode::NotImplemented => false,
        _ => {
            let said = message.to_lowercase();
            let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
            says(OF_DEVICE) && !says(OF_INPUT)
        }
    }
}

impl InferenceError {
    /// A run's error, by whose fault it is.
    pub(super) fn of_run(model: &str, error: &ort::Error) -> Self {
        let (model, message) = (model.to_owned(), error.to_string());
        if is_of_device(error.code(), &message) {
            Self::Device { model, message }
        } else {
            Self::Run { model, message }
        }
    }

    /// A fault whose words alone are known.
    pub(super) fn of_message(model: &str, message: String) -> Self {
        let model = model.to_owned();
        if is_of_device(ErrorCode::GenericFailure, &message) {
            Self::Device { model, message }
        } else {
            Self::Run { model, message }
        }
    }

    /// The model cannot answer now, whatever it is given: its device failed, or it is being opened again.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Device { .. } | Self::Unavailable { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: ErrorCode, message: &str, expected: bool) {
        assert_eq!(is_of_device(code, message), expected, "{code:?}: {message}");
    }

    #[test]
    fn a_lost_or_full_device_is_told_from_a_bad_input() {
        for message in [
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=line3 ; expr=cudaMalloc((void**)&p, size);",
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
            "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0",
            "CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0",
            "Non-zero status code returned while running Conv node. BFCArena::AllocateRawInternal Failed to allocate memory for \
             requested buffer of size 411041792",
            "TensorRT EP execution context enqueue failed.",
            "std::bad_alloc",
            "the GPU will not respond: DXGI_ERROR_DEVICE_REMOVED",
        ] {
            check(ErrorCode::GenericFailure, message, true);
            check(ErrorCode::RuntimeException, message, true);
            check(ErrorCode::InvalidArgument, message, false);
        }
        check(ErrorCode::DeviceReset, "", true);
        for message in [
            "Got invalid dimensions for input: images for the following indices index: 2 Got: 7 Expected: 416",
            "Non-zero status code returned while running Reshape node. The input tensor cannot be reshaped",
            "CUDNN failure 3: CUDNN_STATUS_BAD_PARAM ; GPU=0",
            "CUDA failure 1: invalid argument ; GPU=0",
            "",
        ] {
            check(ErrorCode::GenericFailure, message, false);
        }
    }
}
