//! Commands made by Pulsegate itself: replays of session state, and inline requests put into multibulk form.

use bytes::{BufMut, BytesMut};

/// A command as a multibulk frame.
pub fn encode_command(args: &[&[u8]]) -> Vec<u8> {
    let payload: usize = args.iter().map(|arg| arg.len() + 16).sum();
    let mut out = Vec::with_capacity(payload + 16);
    write(&mut out, args);
    out
}

/// Appends a command as a multibulk frame to `out`.
pub fn encode_command_into(out: &mut BytesMut, args: &[&[u8]]) {
    write(out, args);
}

fn write(out: &mut impl BufMut, args: &[&[u8]]) {
    line(out, b'*', args.len());
    for arg in args {
        line(out, b'$', arg.len());
        out.put_slice(arg);
        out.put_slice(b"\r\n");
    }
}

fn line(out: &mut impl BufMut, kind: u8, number: usize) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.put_u8(kind);
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_become_multibulk_frames() {
        assert_eq!(
            encode_command(&[b"SET", b"", b"0123456789"]),
            b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$10\r\n0123456789\r\n"
        );
        let mut out = BytesMut::from(&b"x"[..]);
        encode_command_into(&mut out, &[b"PING"]);
        assert_eq!(&out[..], b"x*1\r\n$4\r\nPING\r\n");
    }
}
