for (const svg of document.querySelectorAll("svg[data-curves]")) {
  const curves = JSON.parse(svg.dataset.curves), mark = svg.querySelector(".mark");
  const box = svg.viewBox.baseVal;
  svg.addEventListener("pointermove", (event) => {
    const seen = svg.getBoundingClientRect();
    const x = ((event.clientX - seen.left) * box.width) / seen.width;
    const near = curves.map((curve) => {
      const point = curve.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      return { name: curve.name, point };
    });
    const at = near[0].point[0], right = at > box.width / 2;
    mark.replaceChildren();
    const add = (tag, attributes, text) => {
      const item = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) item.setAttribute(name, value);
      if (text) item.textContent = text;
      mark.append(item);
    };
    add("line", { x1: at, x2: at, y1: 10, y2: box.height - 40 });
    near.forEach(({ name, point }, index) => {
      add("circle", { cx: point[0], cy: point[1], r: 3, class: `run${index}` });
      const label = `${svg.dataset.along} ${point[2]}: ${point[3]}` + (near.length > 1 ? `  (${name})` : "");
      const place = { x: right ? at - 8 : at + 8, y: 24 + 16 * index, "text-anchor": right ? "end" : "start" };
      add("text", place, label);
    });
  });
  svg.addEventListener("pointerleave", () => mark.replaceChildren());
}
