//! Any bytes as a picture file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = loupe::capture::decode_image(bytes, "fuzz") {
        assert_eq!(image.bgr().len(), image.width_px() as usize * image.height_px() as usize * 3);
    }
});
