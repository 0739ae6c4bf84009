//! The picture: how the queue is, above; flows, below.

use bytesize::ByteSize;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, Widget};

use crate::flows::{Order, Row};
use crate::health::{Health, Kernel};

/// Lines above the flows: three of the queue, an empty one.
const ABOVE: u16 = 4;
/// The header of the table and the line below it.
const AROUND: u16 = 2;

/// What is to be seen.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// `queue 1 at output`
    pub(crate) title: String,
    pub(crate) max_len: u32,
    pub(crate) health: Health,
    /// In the order in which they are shown.
    pub(crate) rows: Vec<Row>,
    pub(crate) order: Order,
    pub(crate) unreadable: u64,
    pub(crate) forgotten: u64,
    pub(crate) is_still: bool,
}

impl Picture {
    /// The same as lines of text, with so many flows at most.
    pub(crate) fn lines(&self, width: u16, rows: u16) -> Vec<String> {
        let shown = u16::try_from(self.rows.len()).unwrap_or(u16::MAX).min(rows);
        let area = Rect::new(0, 0, width, shown.saturating_add(ABOVE + AROUND));
        let mut buffer = Buffer::empty(area);
        self.render(area, &mut buffer);
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..area.height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    fn queue(&self) -> [Line<'_>; 3] {
        let Health { stats, rate, losing, kernel } = &self.health;
        let first = Line::from(vec![
            Span::raw(&self.title).bold(),
            Span::raw(format!(": {} received, {rate} per second", stats.received)),
        ]);
        let lost = format!(
            "lost {}, cut off {}, malformed {}, refused {}",
            stats.lost, stats.truncated, stats.malformed, stats.refused
        );
        let second = Span::styled(lost, if *losing > 0 { bad() } else { Style::new() });
        let third = match kernel {
            Kernel::Says(kernel) => {
                let is_nearly_full = kernel.waiting > self.max_len / 2;
                let style = if is_nearly_full { bad() } else { Style::new() };
                Line::from(vec![
                    Span::styled(format!("waiting {} of {}", kernel.waiting, self.max_len), style),
                    Span::raw(format!(
                        ", dropped: queue full {}, buffer full {}",
                        kernel.queue_dropped, kernel.user_dropped
                    )),
                ])
            }
            Kernel::Silent => Line::from("the kernel tells its counters to root only").dim(),
        };
        [first, second.into(), third]
    }

    fn table(&self) -> Table<'_> {
        let header = [
            (None, "protocol"),
            (None, "from"),
            (None, "to"),
            (Some(Order::Packets), "packets"),
            (None, "back"),
            (Some(Order::Bytes), "bytes"),
            (Some(Order::Rate), "per second"),
            (Some(Order::Recent), "silent"),
        ];
        let header = header.map(|(order, name)| match order == Some(self.order) {
            true => Cell::from(name).underlined(),
            false => Cell::from(name),
        });
        let row = |row: &Row| {
            TableRow::new([
                row.flow.protocol.to_string(),
                row.flow.from().to_string(),
                row.flow.to().to_string(),
                row.there.packets.to_string(),
                row.back.packets.to_string(),
                ByteSize(row.there.bytes + row.back.bytes).to_string(),
                ByteSize(row.rate).to_string(),
                format!("{} s", row.silent_for.as_secs()),
            ])
        };
        let widths = [
            Constraint::Length(9),
            Constraint::Fill(1),
            Constraint::Fill(1),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(7),
        ];
        Table::new(self.rows.iter().map(row), widths).header(TableRow::new(header).bold())
    }

    fn bottom(&self) -> Line<'_> {
        let mut text = format!("flows: {}", self.rows.len());
        if self.forgotten > 0 {
            text += &format!(", {} forgotten for want of room", self.forgotten);
        }
        if self.unreadable > 0 {
            text += &format!(", {} packets unreadable", self.unreadable);
        }
        let keys = if self.is_still { "space goes on" } else { "space stops the picture" };
        Line::from(format!("{text}; q ends, s sorts, {keys}")).dim()
    }
}

fn bad() -> Style {
    Style::new().red().bold()
}

impl Widget for &Picture {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let heights = [Constraint::Length(ABOVE), Constraint::Fill(1), Constraint::Length(1)];
        let [above, middle, below] = Layout::vertical(heights).areas(area);
        Paragraph::new(self.queue().to_vec()).render(above, buffer);
        Widget::render(self.table(), middle, buffer);
        Paragraph::new(self.bottom()).render(below, buffer);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use etherparse::PacketBuilder;
    use netfilterqueue::KernelStats;
    use netfilterqueue_programs::Flow;

    use super::*;
    use crate::flows::Traffic;

    pub(crate) fn picture(flows: u16) -> Picture {
        let row = |port| {
            let mut packet = Vec::new();
            let builder = PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64).tcp(port, 443, 1, 1);
            builder.write(&mut packet, b"body").unwrap();
            Row {
                flow: Flow::of(&packet).unwrap(),
                there: Traffic { packets: 12, bytes: 2000 },
                back: Traffic { packets: 34, bytes: 48 },
                rate: 1536,
                silent_for: Duration::from_secs(5),
            }
        };
        let mut health = Health::default();
        (health.stats.received, health.rate, health.stats.lost) = (1234, 56, 7);
        health.kernel = Kernel::Says(KernelStats::parse("1 2 600 2 65531 5 6 7 1").unwrap());
        Picture {
            title: "queue 1 at output".to_owned(),
            max_len: 1024,
            health,
            rows: (0..flows).map(row).collect(),
            order: Order::Rate,
            unreadable: 8,
            forgotten: 9,
            is_still: false,
        }
    }

    #[test]
    fn everything_is_to_be_seen() {
        let lines = picture(1).lines(130, 20);
        let address = |byte: &str| format!("[{}]", [byte; 8].join(":"));
        assert_eq!(lines[0], "queue 1 at output: 1234 received, 56 per second");
        assert_eq!(lines[1], "lost 7, cut off 0, malformed 0, refused 0");
        assert_eq!(lines[2], "waiting 600 of 1024, dropped: queue full 5, buffer full 6");
        assert_eq!(lines[3], "");
        assert!(lines[4].starts_with("protocol  from"), "{}", lines[4]);
        let words: Vec<&str> = lines[5].split_ascii_whitespace().collect();
        let (from, to) = (address("fdfd") + ":0", address("fefe"));
        // The width of a column cuts long addresses off.
        assert!(from.starts_with(words[1]) && words[2].starts_with(&to[..20]), "{words:?}");
        assert_eq!(
            (words[0], &words[3..]),
            ("TCP", &["12", "34", "2.0", "KiB", "1.5", "KiB", "5", "s"][..])
        );
        assert!(
            lines[6].starts_with("flows: 1, 9 forgotten for want of room, 8 packets unreadable;")
        );
        assert_eq!(lines.len(), 7);
    }

    #[test]
    fn as_many_rows_as_wanted() {
        assert_eq!(picture(50).lines(100, 10).len(), 16);
        assert_eq!(picture(3).lines(100, 10).len(), 9);
    }

    #[test]
    fn what_is_bad_is_red() {
        let mut picture = picture(0);
        let red = |picture: &Picture| {
            let area = Rect::new(0, 0, 80, 10);
            let mut buffer = Buffer::empty(area);
            picture.render(area, &mut buffer);
            [1, 2].map(|y| buffer[(0, y)].fg == ratatui::style::Color::Red)
        };
        assert_eq!(red(&picture), [false, true], "more than half full");
        picture.health.losing = 1;
        picture.max_len = 60_000;
        assert_eq!(red(&picture), [true, false]);
    }

    #[test]
    fn terminals_of_any_size_are_survived() {
        let picture = picture(30);
        for (width, height) in [(0, 0), (1, 1), (3, 40), (200, 2), (80, 5), (500, 200)] {
            let area = Rect::new(0, 0, width, height);
            picture.render(area, &mut Buffer::empty(area));
        }
    }
}
