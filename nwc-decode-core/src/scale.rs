//! Scales as integer codes in steps of 1/512 octave (§10.1).

use crate::Error;

/// The smallest code of a scale: 2^-126.
pub const SCALE_CODE_MIN: i32 = -126 * 512;
/// The largest code of a scale: just below 2^128.
pub const SCALE_CODE_MAX: i32 = 128 * 512 - 1;

/// 2^(30 + i/16), rounded.
const COARSE: [u32; 16] = [
    0x4000_0000,
    0x42D5_61B4,
    0x45CA_E0F2,
    0x48E1_E9BA,
    0x4C1B_F829,
    0x4F7A_9930,
    0x52FF_6B55,
    0x56AC_1F75,
    0x5A82_799A,
    0x5E84_51D0,
    0x62B3_9509,
    0x6712_460B,
    0x6BA2_7E65,
    0x7066_6F76,
    0x7560_6374,
    0x7A92_BE8B,
];

/// 2^(31 + j/512), rounded.
const FINE: [u32; 32] = [
    0x8000_0000,
    0x802C_6437,
    0x8058_D7D3,
    0x8085_5AD9,
    0x80B1_ED50,
    0x80DE_8F3C,
    0x810B_40A2,
    0x8138_0188,
    0x8164_D1F4,
    0x8191_B1EA,
    0x81BE_A171,
    0x81EB_A08D,
    0x8218_AF43,
    0x8245_CD9B,
    0x8272_FB98,
    0x82A0_3940,
    0x82CD_8699,
    0x82FA_E3A8,
    0x8328_5072,
    0x8355_CCFD,
    0x8383_594F,
    0x83B0_F56D,
    0x83DE_A15C,
    0x840C_5D21,
    0x843A_28C4,
    0x8468_0448,
    0x8495_EFB3,
    0x84C3_EB0C,
    0x84F1_F656,
    0x8520_1199,
    0x854E_3CD9,
    0x857C_781C,
];

/// The binary32 number 2^(code / 512), with the mantissa rounded as §10.1 says.
///
/// # Errors
/// [`Error::Scale`] if the code lies outside [`SCALE_CODE_MIN`]`..=`[`SCALE_CODE_MAX`].
#[inline]
pub fn scale(code: i32) -> Result<f32, Error> {
    if !(SCALE_CODE_MIN..=SCALE_CODE_MAX).contains(&code) {
        return Err(Error::Scale);
    }
    let biased = code.wrapping_sub(SCALE_CODE_MIN).wrapping_add(512).cast_unsigned();
    let exponent = biased >> 9; // e + 127, from 1 to 254
    let coarse = COARSE.get(crate::num::index((biased >> 5) & 15)).copied().unwrap_or(0);
    let fine = FINE.get(crate::num::index(biased & 31)).copied().unwrap_or(0);
    let product = u64::from(coarse).wrapping_mul(u64::from(fine)).wrapping_add(1 << 37) >> 38;
    let fraction = crate::num::low_u32(product) & 0x007F_FFFF;
    Ok(f32::from_bits((exponent << 23) | fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_the_power_rounded() {
        // Under Miri all of them would take hours.
        for code in (SCALE_CODE_MIN..=SCALE_CODE_MAX).step_by(if cfg!(miri) { 997 } else { 1 }) {
            let want = (f64::from(code) / 512.0).exp2();
            let got = f64::from(scale(code).unwrap());
            assert!((got / want - 1.0).abs() <= 2f64.powi(-24) * 1.001, "{code}: {got:e}, not {want:e}");
        }
        assert_eq!(scale(0).map(f32::to_bits), Ok(1f32.to_bits()));
        assert_eq!(scale(SCALE_CODE_MIN).map(f32::to_bits), Ok(f32::MIN_POSITIVE.to_bits()));
        assert_eq!(scale(SCALE_CODE_MIN - 1), Err(Error::Scale));
        assert_eq!(scale(SCALE_CODE_MAX + 1), Err(Error::Scale));
    }
}
