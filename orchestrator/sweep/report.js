const light = trial => {
  document.querySelectorAll('svg').forEach(s => s.classList.toggle('lit', trial !== null));
  document.querySelectorAll('[data-trial]').forEach(e => e.classList.toggle('on', e.dataset.trial === trial));
};
document.addEventListener('mouseover', event => {
  const found = event.target.closest('[data-trial]'); light(found ? found.dataset.trial : null);
});
document.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], up = head.dataset.up !== '1';
  const key = row => { const text = row.cells[column].textContent; const number = parseFloat(text);
    return text === '' ? [2, 0] : isNaN(number) ? [1, text] : [0, number]; };
  const sorted = [...body.rows].sort((a, b) => { const [i, x] = key(a), [j, y] = key(b);
    return i !== j ? i - j : (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); });
  head.dataset.up = up ? '1' : '0'; body.append(...sorted);
}));
