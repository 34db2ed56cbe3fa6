//! What a plan decided, in the log: a line a tensor.

use super::Plan;
use tracing::Level;

/// The module's own would name this file, too.
const TARGET: &str = "monoquant::plan";

impl Plan {
    /// Says what happens to every tensor and why, and which tensors of the output come of it, beside the input's name.
    pub(crate) fn log(&self) {
        if !tracing::enabled!(target: TARGET, Level::INFO) {
            return;
        }
        let mut written = vec![Vec::new(); self.rows.len()];
        for job in &self.jobs {
            let layer = self.rows[job.row].name.rsplit_once('.').map_or("", |(layer, _)| layer);
            for place in &job.outputs {
                let file = &self.files[place.file];
                let name = &file.tensors[place.tensor].name;
                let short = name.strip_prefix(layer).and_then(|name| name.strip_prefix('.')).unwrap_or(name);
                let folder = if file.folder.is_empty() { "" } else { "/" };
                written[job.row].push(format!("{}{folder}{short}", file.folder));
            }
        }
        for (row, names) in self.rows.iter().zip(written) {
            tracing::info!(
                target: TARGET,
                tensor = row.name,
                dtype = row.dtype,
                shape = ?row.shape,
                action = row.action,
                reason = row.reason,
                before = row.before,
                after = row.after,
                writes = names.join(" "),
                "decided"
            );
        }
    }
}
