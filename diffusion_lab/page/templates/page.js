// Everything is readable without this: a slider for the pictures in a row, and a button that copies a command.
for (const strip of document.querySelectorAll(".strip")) {
  const figures = [...strip.querySelectorAll("figure")];
  if (figures.length < 2) continue;
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: figures.length - 1, value: figures.length - 1 });
  slider.setAttribute("aria-labelledby", strip.getAttribute("aria-labelledby"));
  const show = () => {
    figures.forEach((figure, index) => figure.classList.toggle("shown", index === slider.valueAsNumber));
    slider.setAttribute("aria-valuetext", figures[slider.valueAsNumber].querySelector("figcaption").textContent);
  };
  slider.addEventListener("input", show);
  strip.classList.add("single");
  strip.removeAttribute("tabindex");
  strip.before(slider);
  show();
}
for (const command of document.querySelectorAll(".commands pre")) {
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  command.after(button);
}
