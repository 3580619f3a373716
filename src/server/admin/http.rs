//! One request, one answer, then the connection is closed. Everything is bounded: the size of the
//! head, the time it may take to arrive, the time the answer may take to leave.
//!
//! Bodies are not read: nothing here takes one.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Largest request line with all headers.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// The whole head has to be here by then.
const HEAD_TIME: Duration = Duration::from_secs(2);
/// The whole answer has to be taken by then.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// A client that goes on sending after its answer is heard this long, and this much, so that the
/// answer is not lost to a reset.
const LINGER_TIME: Duration = Duration::from_millis(200);
const LINGER_BYTES: usize = 64 << 10;

/// What is said to the client.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

impl Answer {
    /// A line for people and scripts.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() + "\n" }
    }

    fn head(&self) -> String {
        let (status, reason) = (self.status, reason(self.status));
        let (length, kind) = (self.body.len(), self.content_type);
        let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             {allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// A request that can be answered by its path alone.
struct Request {
    /// Without the query.
    path: String,
    /// HEAD: the answer without its body.
    head_only: bool,
}

/// Serves one connection. Errors of the network end it: there is nobody to tell.
pub fn serve(mut stream: TcpStream, answer: impl FnOnce(&str) -> Answer) {
    let (answer, head_only) = match read_request(&mut stream) {
        Ok(Some(Request { path, head_only })) => (answer(&path), head_only),
        Ok(None) => return,
        Err(refused) => (refused, false),
    };
    let body = if head_only { "" } else { &answer.body };
    let sent = send(&mut stream, answer.head().as_bytes())
        .and_then(|()| send(&mut stream, body.as_bytes()));
    if sent.is_ok() && stream.shutdown(Shutdown::Write).is_ok() {
        linger(&mut stream);
    }
}

/// `None`: the client has gone.
fn read_request(stream: &mut TcpStream) -> Result<Option<Request>, Answer> {
    let until = Instant::now() + HEAD_TIME;
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0; 1024];
    loop {
        if let Some(request) = parse(&head)? {
            return Ok(Some(request));
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Err(Answer::text(431, format!("more than {HEAD_BYTES_MAX} bytes of headers")));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return Err(Answer::text(408, "the request did not arrive in time"));
        }
        let room = chunk.len().min(HEAD_BYTES_MAX - head.len());
        match stream.read(&mut chunk[..room]) {
            Ok(0) => return Ok(None),
            Ok(count) => head.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if is_late(error.kind()) => {}
            Err(_) => return Ok(None),
        }
    }
}

fn is_late(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// `None`: the head is not complete yet.
fn parse(head: &[u8]) -> Result<Option<Request>, Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(status) if status.is_partial() => return Ok(None),
        Ok(_) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Answer::text(431, format!("more than {HEADERS_MAX} headers")));
        }
        Err(error) => return Err(Answer::text(400, format!("not a request: {error}"))),
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Answer::text(405, "only GET and HEAD: nothing can be changed here")),
    };
    let path = request.path.unwrap_or("/").split('?').next().unwrap_or_default().to_owned();
    Ok(Some(Request { path, head_only }))
}

fn send(stream: &mut TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    let until = Instant::now() + ANSWER_TIME;
    while !bytes.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn linger(stream: &mut TcpStream) {
    let until = Instant::now() + LINGER_TIME;
    let mut chunk = [0; 4096];
    let mut heard = 0;
    while heard < LINGER_BYTES {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => heard += count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(head: &[u8]) -> u16 {
        parse(head).err().expect("it must be refused").status
    }

    #[test]
    fn a_path_comes_without_its_query_and_only_when_the_head_is_whole() {
        let whole = b"GET /metrics?name=x HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_ok_and(|request| request.is_none()), "{end}");
        }
        let request = parse(whole).ok().flatten().unwrap();
        assert_eq!((request.path.as_str(), request.head_only), ("/metrics", false));
        assert!(parse(b"HEAD / HTTP/1.0\r\n\r\n").ok().flatten().unwrap().head_only);
    }

    #[test]
    fn what_is_no_question_is_refused_by_kind() {
        assert_eq!(refused(b"POST /metrics HTTP/1.1\r\n\r\n"), 405);
        assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400);
        assert_eq!(refused(b"GET /metrics\r\n\r\n"), 400);
        assert_eq!(refused(b"GET / HTTP/2.0\r\n\r\n"), 400);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(refused(many.as_bytes()), 431);
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
        let head = Answer::text(503, "not ready").head();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(head.contains("Content-Length: 10\r\n") && head.contains("Connection: close\r\n"));
        assert!(head.ends_with("\r\n\r\n"));
        assert!(Answer::text(405, "").head().contains("Allow: GET, HEAD\r\n"));
    }
}
