//! A log on a disk. What is kept is only acknowledged once it is synced, and when that is done follows a real server's rule: after
//! a record is written the file is synced if no other waits, or if the last sync is long enough ago. So what it costs to wait
//! for a durable append is what it costs there, on the same disk.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// EventStoreDB's and KurrentDB's own default (`MinFlushDelayMs`).
const SYNC_DELAY_MIN: Duration = Duration::from_millis(2);
/// Its files have their size from the beginning.
const FILE_BYTES: u64 = 256 << 20;

struct Record {
    bytes: Vec<u8>,
    synced: oneshot::Sender<()>,
}

/// A file and the thread that writes it. The thread ends when this is dropped.
pub struct Disk(Sender<Record>);

impl Disk {
    pub fn create(file: &Path) -> Self {
        let file = File::create_new(file).expect("a new file");
        file.set_len(FILE_BYTES).expect("room on the disk");
        let (sender, records) = channel();
        std::thread::Builder::new().name("disk".to_owned()).spawn(move || write(file, &records)).expect("a thread");
        Disk(sender)
    }

    /// Returns once this is on the disk.
    pub async fn keep(&self, bytes: Vec<u8>) {
        let (synced, wait) = oneshot::channel();
        self.0.send(Record { bytes, synced }).expect("a thread that writes");
        wait.await.expect("a thread that syncs");
    }
}

fn write(mut file: File, records: &Receiver<Record>) {
    let mut waiting = Vec::new();
    let (mut last_sync, mut last_took) = (Instant::now(), Duration::ZERO);
    let mut next = records.recv().ok();
    while let Some(Record { bytes, synced }) = next {
        file.write_all(&bytes).expect("room on the disk");
        waiting.push(synced);
        next = records.try_recv().ok();
        if next.is_some() && last_sync.elapsed() < last_took + SYNC_DELAY_MIN {
            continue;
        }
        let began = Instant::now();
        file.sync_data().expect("a disk that keeps");
        (last_sync, last_took) = (Instant::now(), began.elapsed());
        for synced in waiting.drain(..) {
            // Perhaps its connection has been cut.
            let _ = synced.send(());
        }
        if next.is_none() {
            next = records.recv().ok();
        }
    }
}
