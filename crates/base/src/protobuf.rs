//! The parts of the protobuf wire format (protobuf.dev, "Encoding") from which hand-written messages are encoded: varints and
//! the headers of length-delimited fields. For Loki and remote write, whose messages are a few fields deep and whose lines and
//! labels must not be copied into a tree first. Limits: field numbers are below 16.

/// The header of a length-delimited field.
pub fn delimited(field: u8, length: usize, out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    varint(length as u64, out);
}

/// A string field, including its header.
pub fn text(field: u8, value: &str, out: &mut Vec<u8>) {
    delimited(field, value.len(), out);
    out.extend_from_slice(value.as_bytes());
}

/// The size of a length-delimited field in bytes, including its header.
pub fn field_length(length: usize) -> usize {
    1 + varint_length(length as u64) + length
}

pub fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub fn varint_length(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn computed_lengths_match_the_encoding() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(number, &mut out);
            assert_eq!(out.len(), varint_length(number), "{number}");
        }
        let mut out = Vec::new();
        text(2, &"x".repeat(200), &mut out);
        assert_eq!(out.len(), field_length(200));
        assert_eq!(&out[..3], [0x12, 0xc8, 0x01]);
    }
}
