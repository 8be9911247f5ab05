// A small time plot on a canvas: a line, its area, the newest and the greatest value.
import { colours, h } from "./text.js";

const WIDTH = 132, HEIGHT = 30;

export class Plot {
	constructor(name, format) {
		this.name = name;
		this.format = format;
		this.canvas = h("canvas", { width: WIDTH, height: HEIGHT, role: "img" });
		this.value = h("span", { class: "value" }, "–");
		this.element = h("div", { class: "plot" }, this.canvas, this.value);
	}

	draw(times, values) {
		const known = values.filter((value) => value != null);
		const newest = values[values.length - 1];
		const most = known.length ? Math.max(...known) : 0;
		this.value.textContent = newest == null ? "–" : this.format(newest);
		const text = known.length
			? `${this.name}, the last hour: now ${this.value.textContent}, at most ${this.format(most)}`
			: `${this.name}: no values yet`;
		this.canvas.setAttribute("aria-label", text);
		this.canvas.title = text;
		this.canvas.dataset.points = known.length;
		this.paint(times, values, most);
	}

	paint(times, values, most) {
		const ratio = window.devicePixelRatio || 1;
		if (this.canvas.width !== WIDTH * ratio) {
			this.canvas.width = WIDTH * ratio;
			this.canvas.height = HEIGHT * ratio;
		}
		const context = this.canvas.getContext("2d");
		const line = colours(this.canvas)("plot");
		context.setTransform(ratio, 0, 0, ratio, 0, 0);
		context.clearRect(0, 0, WIDTH, HEIGHT);
		if (!times.length) return;
		const first = times[0], range = Math.max(times[times.length - 1] - first, 1);
		const x = (place) => (times[place] - first) / range * (WIDTH - 2) + 1;
		const y = (value) => HEIGHT - 2 - (most ? value / most : 0) * (HEIGHT - 5);
		let run = [];
		const close = () => {
			if (run.length) {
				context.beginPath();
				context.moveTo(x(run[0]), HEIGHT - 1);
				for (const place of run) context.lineTo(x(place), y(values[place]));
				context.lineTo(x(run[run.length - 1]), HEIGHT - 1);
				context.globalAlpha = 0.2;
				context.fillStyle = line;
				context.fill();
				context.globalAlpha = 1;
				context.beginPath();
				run.forEach((place, step) => context[step ? "lineTo" : "moveTo"](x(place), y(values[place])));
				context.strokeStyle = line;
				context.lineWidth = 1.5;
				context.stroke();
			}
			run = [];
		};
		values.forEach((value, place) => { if (value == null) close(); else run.push(place); });
		close();
	}
}
