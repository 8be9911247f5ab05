// The tab of workers and sinks: their last hour, the losses, and the bookkeeping.
import { $, bytes, clockOf, count, h, inline, put, span, visible, workerColour, workerTag } from "./text.js";
import { Plot } from "./plots.js";

const INTERVAL = 2000;
const rate = (value) => `${value >= 100 ? count(Math.round(value)) : +value.toFixed(1)}/s`;
const WORKER_PLOTS = [["rates", "records/s", rate], ["errors", "errors/min", (v) => `${+v.toFixed(1)}/min`],
	["cpu", "CPU", (v) => `${Math.round(v)} %`], ["rss", "memory", bytes]];
const SINK_PLOTS = [["rates", "records/s", rate], ["lag", "lag", (v) => span(v)],
	["queue", "waiting", (v) => count(Math.round(v))], ["spool", "on disk", bytes]];

export class MachineryTab {
	constructor(act) {
		this.act = act;
		this.rows = new Map();
		this.control = false;
		this.heads();
	}

	heads() {
		const make = (body, names) => $(`${body}-region`).append(h("table", {}, h("thead", {}, h("tr", {},
			...names.split(",").map((name) => h("th", { scope: "col", class: name === "control" ? "when-control" : null }, name)))),
		h("tbody", { id: body })));
		make("worker-rows", "worker,state,records/s,errors/min,CPU,memory,restarts,lost,last seen,last death,control");
		make("sink-rows", "sink,state,records/s,lag,waiting,on disk,retries,error");
		make("ledger", "when,kind,of,records,words");
	}

	async refresh() {
		let report;
		try {
			report = await (await fetch("/machinery")).json();
		} catch { return null; }
		this.report = report;
		return report;
	}

	show(active) {
		clearInterval(this.timer);
		if (!active) return;
		const turn = async () => { if (!document.hidden && await this.refresh()) this.draw(); };
		turn();
		this.timer = setInterval(turn, INTERVAL);
	}

	draw() {
		const { consumer, times, workers, sinks } = this.report;
		put("service", consumer
			? `${this.report.program ? `${this.report.program}: ` : ""}run ${consumer.run}, pid ${consumer.pid}, up ` +
				`${span(consumer.uptime)}, ${count(consumer.records)} records, ${count(consumer.late)} late, ` +
				`${count(consumer.workers_ended)} workers ended, ${count(consumer.viewers)} viewers`
			: "No consumer is connected: there are no workers and sinks to show.");
		this.table($("worker-rows"), workers, "worker", WORKER_PLOTS, times, (row) => this.workerRow(row),
			(cells, row) => this.fillWorker(cells, row));
		this.table($("sink-rows"), sinks, "sink", SINK_PLOTS, times, (row) => this.sinkRow(row),
			(cells, row) => this.fillSink(cells, row));
		this.ledger(this.report);
		this.equations(sinks);
		$("control").hidden = !this.control || !consumer;
		$("scale-form").hidden = $("stop").hidden = !this.report.run_pid;
	}

	// Rows stay, so that the focus does; only their texts change.
	table(body, found, kind, plots, times, make, fill) {
		const seen = new Set();
		found.forEach((row, place) => {
			const key = `${kind} ${row[kind]} ${kind === "sink" ? place : ""}`;
			seen.add(key);
			let known = this.rows.get(key);
			if (!known) {
				const drawn = plots.map(([, name, format]) => new Plot(`${row[kind]} ${name}`, format));
				known = { cells: make(row), plots: drawn, kind };
				known.element = h("tr", {}, ...known.cells.slice(0, 2),
					...drawn.map((plot) => h("td", {}, plot.element)), ...known.cells.slice(2));
				this.rows.set(key, known);
				body.append(known.element);
			}
			fill(known.cells, row);
			plots.forEach(([field], number) => known.plots[number].draw(times, row[field]));
		});
		for (const [key, known] of this.rows) {
			if (known.kind === kind && !seen.has(key)) { known.element.remove(); this.rows.delete(key); }
		}
	}

	workerRow(row) {
		const restart = h("button", {
			onclick: () => this.act("restart", `Restart worker ${row.worker}?`, { slot: row.slot }) }, "restart");
		return [h("th", { scope: "row", class: `worker c${workerColour(row.worker)}` }, workerTag(row.worker)),
			h("td"), h("td"), h("td"), h("td"), h("td"),
			h("td", { class: "when-control" }, row.slot != null ? restart : null)];
	}

	fillWorker(cells, row) {
		put(cells[1], `${row.state}, pid ${row.pid ?? "–"}`);
		put(cells[2], row.restarts == null ? "–" : count(row.restarts));
		put(cells[3], count(row.lost));
		put(cells[4], row.last_seen ? clockOf(`${row.last_seen}Z`).slice(0, 8) : "–");
		const death = row.death;
		const key = JSON.stringify([row.last_exit, death]);
		if (cells[5].key === key) return;
		cells[5].key = key;
		cells[5].replaceChildren(death
			? h("details", {}, h("summary", {}, `${clockOf(death.timestamp).slice(0, 8)} ${visible(death.message).slice(0, 160)}`),
				h("pre", {}, visible(death.words || "it left no words")))
			: row.last_exit || "none");
	}

	sinkRow(row) {
		return [h("th", { scope: "row", class: "sink" }, inline(row.sink)), h("td"), h("td"),
			h("td")];
	}

	fillSink(cells, row) {
		put(cells[1], row.state);
		put(cells[2], count(row.retries));
		put(cells[3], row.error ? visible(row.error).slice(0, 300) : "–");
	}

	ledger(report) {
		const key = `${report.lost} ${report.losses.length}`;
		if (this.ledgerKey === key) return;
		this.ledgerKey = key;
		put("ledger-total", report.lost ? `${count(report.lost)} records are lost.` : "No record is lost.");
		$("ledger").replaceChildren(...lossRows(report.losses));
	}

	equations(sinks) {
		$("equations").replaceChildren(...sinks.map((sink) => {
			const side = (part) => Object.entries(part).map(([name, number]) => `${count(number)} ${name}`).join(" + ");
			return h("li", { class: sink.holds ? "holds" : "broken" }, h("b", {}, inline(sink.sink)),
				` ${side(sink.in)} = ${side(sink.out)} `, h("strong", {}, sink.holds ? "✓ holds" : "✗ does not hold"));
		}));
	}
}

function lossRows(losses) {
	return [...losses].reverse().map((loss) => h("tr", {},
		h("td", {}, clockOf(loss.timestamp, "date")), h("td", {}, loss.event),
		h("td", {}, loss.worker ? workerTag(loss.worker) : inline(loss.sink)),
		h("td", {}, count(loss.number)), h("td", {}, visible(loss.message))));
}
