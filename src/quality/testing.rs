//! Synthetic scenes and faults for this room's tests.

use crate::types::Image;

pub fn image(width_px: u32, height_px: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Image {
    let bgr = (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y))).flat_map(|(x, y)| pixel(x, y)).collect();
    Image::from_bgr(width_px, height_px, bgr).unwrap()
}

/// Coloured bricks on a shaded ground; the same scene at every size.
pub fn pattern(width_px: u32, height_px: u32) -> Image {
    image(width_px, height_px, |x, y| {
        let (u, v) = (x as f32 / width_px as f32, y as f32 / height_px as f32);
        let cell = ((u * 7.0) as u32, (v * 5.0) as u32);
        let inside = (u * 7.0).fract() > 0.3 && (v * 5.0).fract() > 0.25;
        let shade = 90.0 + 60.0 * u + 20.0 * v;
        if inside && !(cell.0 * 3 + cell.1 * 5).is_multiple_of(4) {
            let hue = (cell.0 * 37 + cell.1 * 61) % 120;
            if cell.0.is_multiple_of(2) { [20 + (hue / 3) as u8, 30, 70] } else { [150, 220 - (hue / 3) as u8, 235] }
        } else {
            [shade as u8, shade as u8 + 5, shade as u8 + 10]
        }
    })
}

/// Gaussian noise of `sigma` grey levels, the same every time.
pub fn noise(source: &Image, sigma: f32) -> Image {
    let mut random = fastrand::Rng::with_seed(7);
    let pixels = source.bgr().chunks_exact(3).flat_map(|pixel| {
        // Twelve uniforms less six: standard normal to within what a test sees. One draw for all three channels.
        let normal: f32 = (0..12).map(|_| random.f32()).sum::<f32>() - 6.0;
        [pixel[0], pixel[1], pixel[2]].map(|value| (f32::from(value) + normal * sigma).round().clamp(0.0, 255.0) as u8)
    });
    let bgr = pixels.collect();
    Image::from_bgr(source.width_px(), source.height_px(), bgr).unwrap()
}

pub fn adjusted(source: &Image, gain: f32, offset: f32) -> Image {
    let bgr = source.bgr().iter().map(|&v| (f32::from(v) * gain + offset).clamp(0.0, 255.0) as u8).collect();
    Image::from_bgr(source.width_px(), source.height_px(), bgr).unwrap()
}

/// Box blur of `radius` pixels, twice.
pub fn blurred(source: &Image, radius: u32) -> Image {
    let once = |source: &Image| {
        let (width, height) = (source.width_px() as i32, source.height_px() as i32);
        let pass = |source: &Image, dx: i32, dy: i32| {
            image(source.width_px(), source.height_px(), |x, y| {
                std::array::from_fn(|channel| {
                    let radius = radius as i32;
                    let sum: u32 = (-radius..=radius)
                        .map(|step| {
                            let x = (x as i32 + step * dx).clamp(0, width - 1);
                            let y = (y as i32 + step * dy).clamp(0, height - 1);
                            u32::from(source.bgr()[(y * width + x) as usize * 3 + channel])
                        })
                        .sum();
                    (sum / (2 * radius as u32 + 1)) as u8
                })
            })
        };
        pass(&pass(source, 1, 0), 0, 1)
    };
    once(&once(source))
}
